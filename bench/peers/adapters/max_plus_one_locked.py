"""MAX(sequence) + 1 under a lock in Redis, as redis-py has it."""

from __future__ import annotations

import redis.asyncio

from . import max_plus_one


class Store(max_plus_one.Store):
    async def open(self, database_url: str, redis_url: str) -> None:
        await super().open(database_url, redis_url)
        self.redis = redis.asyncio.from_url(redis_url)

    async def append(self, handle: str, batch: list[tuple[str, str]]) -> None:
        async with self.redis.lock(f"lock:{handle}", timeout=10, blocking_timeout=10):
            await super().append(handle, batch)

    async def close(self) -> None:
        await self.redis.aclose()
        await super().close()
