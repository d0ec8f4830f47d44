"""chatledger, with its receipts."""

from __future__ import annotations

from chatledger import ChatLedger, ChatMessage, Settings


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        from chatledger import migrate
        from chatledger.postgres.connections import open_pool

        self.pool = await open_pool(database_url, Settings(pool_size=16))
        async with self.pool.acquire() as connection:
            await migrate(connection)
        self.ledger = ChatLedger(self.pool)

    async def handle(self, session_id: str, *, first: bool) -> str:
        await self.ledger.create_session(session_id)
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        await self.ledger.append_messages(handle, [ChatMessage(role=role, content=text) for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        session = await self.ledger.get_session(session_id)
        return [str(message.content) for message in session.messages] if session else []

    async def close(self) -> None:
        await self.pool.close()
