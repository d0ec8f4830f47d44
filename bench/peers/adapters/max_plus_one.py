"""What most backends write themselves: MAX(sequence) + 1, and again on a unique violation, 5 times."""

from __future__ import annotations

from uuid import uuid4

import asyncpg

from bench import naive


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.pool = await asyncpg.create_pool(database_url, min_size=16, max_size=16)
        self.connection = await asyncpg.connect(database_url)
        self.schema = naive.schema(self.connection)
        await self.schema.__aenter__()

    async def handle(self, session_id: str, *, first: bool) -> str:
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        rows = tuple({"message_id": str(uuid4()), "role": role, "content": text} for role, text in batch)
        await naive.append(self.pool, handle, rows)

    async def load(self, session_id: str) -> list[str]:
        rows = await self.pool.fetch(
            f"select sequence, role, content from {naive.SCHEMA}.messages where session_id = $1 order by sequence",
            session_id,
        )
        return [row["content"] for row in rows]

    async def close(self) -> None:
        await self.schema.__aexit__(None, None, None)
        await self.connection.close()
        await self.pool.close()
