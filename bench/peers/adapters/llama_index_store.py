"""llama-index: PostgresChatStore, a call a message."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.storage.chat_store.postgres import PostgresChatStore


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.store = PostgresChatStore.from_params(
            connection_string=database_url.replace("postgresql:", "postgresql+psycopg:"),
            async_connection_string=database_url.replace("postgresql:", "postgresql+asyncpg:"),
            table_name="chat",
            use_jsonb=True,
        )

    async def handle(self, session_id: str, *, first: bool) -> str:
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        for role, text in batch:
            await self.store.async_add_message(handle, ChatMessage(role=role, content=text))

    async def load(self, session_id: str) -> list[str]:
        return [message.content for message in await self.store.aget_messages(session_id)]

    async def close(self) -> None:
        pass
