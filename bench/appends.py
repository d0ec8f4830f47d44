"""Appends through the client: chatledger against the floor and against MAX(sequence) + 1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.progress import track

from bench import naive
from bench.medians import Medians, rotated
from bench.results import keep
from bench.stores import Chatledger, Floor, MaxPlusOne, Store
from chatledger import ChatLedger, ChatMessage

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.postgres.connections import Pool

TITLE = "Appends through the client"
ONE, TEN = "1 message, 200 sessions, 16 writers", "10 messages, 200 sessions, 16 writers"
HOT = "5 messages, one session, 16 writers"
WRITERS, APPENDS = 16, 25
TEXT = "What should I pack for Oslo? " * 7


def batch(size: int) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=TEXT) for _ in range(size)]


async def new_sessions(ledger: ChatLedger, count: int) -> list[str]:
    return [(await ledger.create_session(f"{uuid4()}-{n}")).session_id for n in range(count)]


async def timed(work: Awaitable[None]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def append_from_many(store: Store, sessions: list[str], size: int) -> None:
    """16 writers at once; each appends to the next session in turn."""

    async def write(first: int) -> None:
        for n in range(APPENDS):
            await store.append(sessions[(first * APPENDS + n) % len(sessions)], batch(size))

    await asyncio.gather(*map(write, range(WRITERS)))


async def measure(pool: Pool, redis_url: str, rounds: int, server: str, console: Console) -> None:
    """Run all stores in turn, so many rounds, and keep the medians."""
    floor, ours, max_plus_one = Floor(pool), Chatledger(ChatLedger(pool)), MaxPlusOne(pool)
    microseconds = Medians()
    async with (
        pool.acquire() as connection,
        naive.schema(connection),
        ChatLedger(pool, redis_url) as cached,
    ):
        stores: list[Store] = [floor, ours, Chatledger(cached, "chatledger, cache on")]
        rivals: list[Store] = [floor, ours, max_plus_one]
        for number in track(range(rounds), "appends", console=console):
            # Sessions of its own for each: the floor counts in the session's row, chatledger by its messages.
            many = {store.name: await new_sessions(ours.ledger, 200) for store in stores}
            for what, size in ((ONE, 1), (TEN, 10)):
                for store in rotated(stores, number):  # who is first comes to sessions that nobody has touched
                    took = await timed(append_from_many(store, many[store.name], size))
                    microseconds.add(what, store.name, took / (WRITERS * APPENDS) * 1e6)
            for rival in rotated(rivals, number):
                [hot], lost = await new_sessions(ours.ledger, 1), max_plus_one.lost
                took = await timed(append_from_many(rival, [hot], 5))
                microseconds.add(HOT, rival.name, took / (WRITERS * APPENDS - (max_plus_one.lost - lost)) * 1e6)

    lost_of = f"{max_plus_one.lost:,} of {rounds * WRITERS * APPENDS:,}"
    remarks = [
        f"MAX + 1 gives up after {naive.RETRIES} retries: it lost {lost_of} batches, the others none. Its time is that "
        "of an append that got in.",
    ]
    keep(TITLE, "µs an append", microseconds.by_what(), server, console, remarks)
