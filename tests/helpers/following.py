"""What a ledger's followers and its listening connection are doing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from chatledger import ChatLedger, SessionEvent
from chatledger.following.listener import Delivery, Listener
from tests.helpers.waiting import until

Events = AsyncGenerator[SessionEvent, None]
LISTENING = "datname = current_database() and query ~* '^(un)?listen'"


def listener_of(ledger: ChatLedger) -> Listener:
    assert ledger._resources is not None
    assert ledger._resources._listener is not None
    return ledger._resources._listener


def is_heard(ledger: ChatLedger) -> bool:
    """Whether notifications arrive."""
    return (
        ledger._resources is not None
        and ledger._resources._listener is not None
        and (listener_of(ledger).delivery is Delivery.DELIVERING)
    )


def followers_of(ledger: ChatLedger) -> list[Any]:
    """Give those that have asked for notifications: none, while the first one is still about to."""
    if ledger._resources is None or ledger._resources._listener is None:
        return []
    return [follower for followers in listener_of(ledger)._followers.values() for follower in followers]


@asynccontextmanager
async def waiting_for_next(ledger: ChatLedger, *followed: Events) -> AsyncIterator[list[asyncio.Task[SessionEvent]]]:
    """Take the next event of each, in tasks that only a notification can wake before half a minute is over."""
    tasks = [asyncio.create_task(anext(events)) for events in followed]
    await until(lambda: len(followers_of(ledger)) == len(followed))
    await until(lambda: all(map(listener_of(ledger).delivers, listener_of(ledger)._followers)))
    followers = followers_of(ledger)
    for _ in range(2):  # one that was polling looks once more, then counts on notifications
        listener_of(ledger)._wake_all()
        await until(lambda: all(one.wake._waiters and not one.wake.is_set() for one in followers))
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def gone(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    return not await connection.fetchval(f"select count(*) from pg_stat_activity where {LISTENING}")
