"""agno: AsyncPostgresDb, a run a batch."""

from __future__ import annotations

import time
from uuid import uuid4

from agno.db.postgres import AsyncPostgresDb
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.session import AgentSession
from sqlalchemy.ext.asyncio import create_async_engine


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.engine = create_async_engine(
            database_url.replace("postgresql:", "postgresql+asyncpg:"), pool_size=16, max_overflow=0
        )
        self.db = AsyncPostgresDb(db_engine=self.engine)

    async def handle(self, session_id: str, *, first: bool) -> str:
        session = AgentSession(session_id=session_id, agent_id="bench", user_id="u", created_at=int(time.time()))
        await self.db.upsert_session(session)
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        messages = [Message(role=role, content=text) for role, text in batch]
        run = RunOutput(run_id=str(uuid4()), session_id=handle, agent_id="bench", messages=messages)
        await self.db.upsert_run(run, session_id=handle, user_id="u")

    async def load(self, session_id: str) -> list[str]:
        runs = await self.db.get_runs(session_id=session_id)
        return [message.content for run in runs for message in run.messages or []]

    async def close(self) -> None:
        await self.engine.dispose()
