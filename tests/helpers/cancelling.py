"""Cancels a piece of work at one of its awaits, on a ledger that has no connection to lose."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg

from chatledger import ChatLedger, Settings


@types.coroutine
def _stepped(number: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step = partial(work.send, None)
    while True:
        try:
            waits_for = step()
        except StopIteration as end:
            return end.value
        number -= 1
        if number == 0:
            task = asyncio.current_task()
            assert task
            task.cancel()
        try:
            yield waits_for
            step = partial(work.send, None)
        except BaseException as error:
            step = partial(work.throw, error)


async def _in_a_task(number: int, work: Coroutine[Any, Any, Any]) -> Any:
    return await _stepped(number, work)


async def was_cancelled_at(number: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run the work in a task, which is cancelled at this await of all that it comes to; False: it ended before."""
    task = asyncio.create_task(_in_a_task(number, work))
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


@asynccontextmanager
async def small_ledger(
    database_url: str, redis_url: str | None = None, settings: Settings | None = None
) -> AsyncIterator[ChatLedger]:
    """A ledger with one connection, since one that leaked would be missed; and none is taken in the end."""
    settings = (settings or Settings()).model_copy(update={"pool_size": 1})
    async with (
        asyncio.timeout(40),  # for closing, which waits for what leaked
        ChatLedger(database_url, redis_url, settings=settings) as ledger,
        asyncio.timeout(30),
    ):
        yield ledger
        assert ledger._resources is not None
        for database in (ledger._resources.database, ledger._resources.heartbeats):
            assert isinstance(pool := database._source, asyncpg.Pool)
            assert pool.get_idle_size() == pool.get_size()
