"""``python -m bench``: ratios of medians, from runs of all stores in turn on one embedded server with fsync on."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.stores import Chatledger, Floor, MaxPlusOne, Store
from chatledger import ChatLedger, ChatMessage, Settings, embedded, migrate
from chatledger.connections import open_pool
from chatledger.demo import naive

if TYPE_CHECKING:
    from chatledger.connections import Pool

WRITERS = 16
TEXT = "What should I pack for Oslo? " * 7
Seconds = dict[str, list[float]]


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


async def measure(pool: Pool, rounds: int, console: Console) -> tuple[dict[str, Seconds], int]:
    ledger = ChatLedger(pool)
    floor, ours, max_plus_one = Floor(pool), Chatledger(pool), MaxPlusOne(pool)
    results: dict[str, Seconds] = defaultdict(lambda: defaultdict(list))
    async with pool.acquire() as connection, naive.schema(connection):
        for _ in track(range(rounds), "measuring", console=console):
            many = await new_sessions(ledger, 200)
            for size in (1, 10):
                for store in (floor, ours):
                    seconds = await timed(append_from_many(store, many, size, 25))
                    results[f"append {size}, 200 sessions, 16 at once"][store.name].append(seconds)
            for rival in (floor, ours, max_plus_one):
                [hot] = await new_sessions(ledger, 1)
                seconds = await timed(append_from_many(rival, [hot], 5, 25))
                results["append 5, one session, 16 at once"][rival.name].append(seconds)
            for length in (10, 10_000):
                [session] = await new_sessions(ledger, 1)
                await ledger.append_messages(session, batch(length))
                seconds = await timed(append_one_by_one(ours, session, 100))
                results["append 1 to a session of 10 / 10,000"][f"{length:,}"].append(seconds)
    return results, max_plus_one.lost


async def append_one_by_one(store: Store, session_id: str, appends: int) -> None:
    for _ in range(appends):
        await store.append(session_id, batch(1))


def print_results(results: dict[str, Seconds], lost: int, rounds: int, console: Console) -> None:
    table = Table("what", "way", "median s", "speed against the first", title=f"medians of {rounds} rounds, in turn")
    for what, ways in results.items():
        [first, *_] = medians = {way: statistics.median(seconds) for way, seconds in ways.items()}
        for way, median in medians.items():
            table.add_row(what, way, f"{median:.3f}", f"{medians[first] / median:.2f}")
        table.add_section()
    console.print(table)
    console.print(f"MAX + 1 lost {lost:,} of {rounds * WRITERS * 25:,} batches; the others none.", highlight=False)


async def run(database_url: str, rounds: int, console: Console) -> None:
    pool = await open_pool(database_url, Settings(pool_size=WRITERS + 1))
    async with pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        results, lost = await measure(pool, rounds, console)
    print_results(results, lost, rounds, console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    folder.chmod(0o755)  # for the server's user, when we are root
    try:
        with embedded.start(folder) as servers:
            asyncio.run(run(servers.database_url, rounds, Console()))
    finally:
        shutil.rmtree(folder)


main()
