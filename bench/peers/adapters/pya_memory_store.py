"""pya-memory: PostgresMessageStore, with pydantic-ai's messages."""

from __future__ import annotations

from pya_memory.backends.postgres import PostgresMessageStore
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.store = PostgresMessageStore(database_url, min_size=16, max_size=16)
        await self.store.migrate()

    async def handle(self, session_id: str, *, first: bool) -> str:
        return session_id

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        messages = [
            ModelRequest(parts=[UserPromptPart(content=text)])
            if role == "user"
            else ModelResponse(parts=[TextPart(content=text)])
            for role, text in batch
        ]
        await self.store.append_messages(conversation_id=handle, messages=messages)

    async def load(self, session_id: str) -> list[str]:
        return [message.parts[0].content for message in await self.store.load_messages(conversation_id=session_id)]

    async def close(self) -> None:
        await self.store.aclose()
