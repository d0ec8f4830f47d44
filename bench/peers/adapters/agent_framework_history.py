"""community-agent-framework-postgres: the history provider."""

from __future__ import annotations

from agent_framework import Message
from agent_framework_community_postgres import PostgresPersistence


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        pool = {"min_size": 16, "max_size": 16}
        self.hub = PostgresPersistence(application_id="bench", connection_string=database_url, pool_kwargs=pool)
        await self.hub.__aenter__()
        await self.hub.migrate()
        self.history = self.hub.history_provider()

    async def handle(self, session_id: str, *, first: bool) -> str:
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        await self.history.save_messages(handle, [Message(role=role, contents=[text]) for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        return [message.text for message in await self.history.get_messages(session_id)]

    async def close(self) -> None:
        await self.hub.__aexit__(None, None, None)
