"""Appends: chatledger against the floor and against MAX(sequence) + 1; and to a short and a long session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.progress import track
from rich.table import Table

from bench.medians import Medians
from bench.stores import Chatledger, Floor, MaxPlusOne, Store
from chatledger import ChatLedger, ChatMessage
from chatledger.demo import naive

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.connections import Pool

WRITERS = 16
TEXT = "What should I pack for Oslo? " * 7


def batch(size: int) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=TEXT) for _ in range(size)]


async def new_sessions(ledger: ChatLedger, count: int) -> list[str]:
    return [(await ledger.create_session(f"{uuid4()}-{n}")).session_id for n in range(count)]


async def timed(work: Awaitable[None]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def append_from_many(store: Store, sessions: list[str], size: int, appends: int) -> None:
    """16 writers at once; each appends to the next session in turn."""

    async def write(first: int) -> None:
        for n in range(appends):
            await store.append(sessions[(first * appends + n) % len(sessions)], batch(size))

    await asyncio.gather(*map(write, range(WRITERS)))


async def append_one_by_one(store: Store, session_id: str, appends: int) -> None:
    for _ in range(appends):
        await store.append(session_id, batch(1))


async def measure(pool: Pool, rounds: int, console: Console) -> None:
    """Run all stores in turn, so many rounds, and print the medians."""
    ledger = ChatLedger(pool)
    floor, ours, max_plus_one = Floor(pool), Chatledger(pool), MaxPlusOne(pool)
    seconds = Medians()
    async with pool.acquire() as connection, naive.schema(connection):
        for _ in track(range(rounds), "appends", console=console):
            many = await new_sessions(ledger, 200)
            for size in (1, 10):
                for store in (floor, ours):
                    took = await timed(append_from_many(store, many, size, 25))
                    seconds.add(f"append {size}, 200 sessions, 16 at once", store.name, took)
            for rival in (floor, ours, max_plus_one):
                [hot] = await new_sessions(ledger, 1)
                took = await timed(append_from_many(rival, [hot], 5, 25))
                seconds.add("append 5, one session, 16 at once", rival.name, took)
            for length in (10, 10_000):
                [session] = await new_sessions(ledger, 1)
                await ledger.append_messages(session, batch(length))
                took = await timed(append_one_by_one(ours, session, 100))
                seconds.add("append 1 to a session of 10 / 10,000", f"{length:,}", took)

    table = Table("what", "way", "median s", "speed against the first", title=f"medians of {rounds} rounds, in turn")
    for what, ways in seconds.by_what().items():
        first = next(iter(ways.values()))
        for way, median in ways.items():
            table.add_row(what, way, f"{median:.3f}", f"{first / median:.2f}")
        table.add_section()
    console.print(table)
    console.print(
        f"MAX + 1 lost {max_plus_one.lost:,} of {rounds * WRITERS * 25:,} batches; the others none.", highlight=False
    )
