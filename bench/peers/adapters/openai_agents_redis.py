"""openai-agents: RedisSession. In memory, so not as durable as the others."""

from __future__ import annotations

import redis.asyncio
from agents.extensions.memory import RedisSession


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.redis = redis.asyncio.from_url(redis_url)

    async def handle(self, session_id: str, *, first: bool) -> RedisSession:
        return RedisSession(session_id, redis_client=self.redis)

    async def append(self, handle: RedisSession, batch: list[tuple[str, str]]) -> None:
        await handle.add_items([{"role": role, "content": text} for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        return [item["content"] for item in await RedisSession(session_id, redis_client=self.redis).get_items()]

    async def close(self) -> None:
        await self.redis.aclose()
