"""What one would write by hand, in chatledger's tables: a bare append, a bare fetch."""

from __future__ import annotations

from bench.loads import ROWS
from bench.stores import Floor
from chatledger import ChatMessage

from . import chatledger_client


class Store(chatledger_client.Store):
    async def open(self, database_url: str, redis_url: str) -> None:
        await super().open(database_url, redis_url)
        self.floor = Floor(self.pool)

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        await self.floor.append(handle, [ChatMessage(role=role, content=text) for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        return [row["content"] for row in await self.pool.fetch(ROWS, session_id)]
