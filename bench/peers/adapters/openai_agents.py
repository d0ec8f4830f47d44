"""openai-agents: SQLAlchemySession."""

from __future__ import annotations

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.engine = create_async_engine(
            database_url.replace("postgresql:", "postgresql+asyncpg:"), pool_size=16, max_overflow=0
        )
        await SQLAlchemySession("first", engine=self.engine, create_tables=True).get_items()

    async def handle(self, session_id: str, *, first: bool) -> SQLAlchemySession:
        return SQLAlchemySession(session_id, engine=self.engine)

    async def append(self, handle: SQLAlchemySession, batch: list[tuple[str, str]]) -> None:
        await handle.add_items([{"role": role, "content": text} for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        return [item["content"] for item in await SQLAlchemySession(session_id, engine=self.engine).get_items()]

    async def close(self) -> None:
        await self.engine.dispose()
