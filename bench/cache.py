"""What the session cache buys: latency, and Postgres' CPU, of reading a whole session with and without it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from bench.appends import batch
from bench.medians import Medians
from bench.results import keep
from chatledger import ChatLedger, Settings
from chatledger.postgres.connections import open_pool

if TYPE_CHECKING:
    from rich.console import Console

TITLE, CPU_TITLE = "Reads with and without the cache", "Postgres' work for a read with and without the cache"
LENGTHS = (10, 100, 200, 1_000, 10_000)
UNCHANGED, BEHIND = "unchanged", "one behind"
PLAIN, CACHED = "without", "with cache"


def what(length: int, state: str) -> str:
    return f"{length:,} messages, {state}"


def cpu_seconds(pid: int) -> float:
    """CPU time of a server process, in steps far finer than a clock tick; Linux has it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def measure(database_url: str, redis_url: str, rounds: int, server: str, console: Console) -> None:
    """Read sessions of several lengths, unchanged and with one message more, in turn; keep the medians."""
    milliseconds, cpu = Medians(), Medians()
    async with AsyncExitStack() as stack:
        # A pool of one connection each, so that it is known which server process did the work.
        pools = [await stack.enter_async_context(await open_pool(database_url, Settings(pool_size=1))) for _ in "ab"]
        plain = await stack.enter_async_context(ChatLedger(pools[0]))
        cached = await stack.enter_async_context(
            ChatLedger(pools[1], redis_url, settings=Settings(cache_min_messages=0))
        )
        pids = [await pool.fetchval("select pg_backend_pid()") for pool in pools]
        for length in LENGTHS:
            session = await plain.create_session()
            await plain.append_messages(session.session_id, batch(length))
            await cached.get_session(session.session_id)
            ways = [(CACHED, cached, pids[1]), (PLAIN, plain, pids[0])]
            for _ in track(range(rounds), f"reads of {length:,}", console=console):
                ways.reverse()  # the second one pays for the garbage of the first
                for state in (UNCHANGED, BEHIND):
                    if state == BEHIND:
                        await plain.append_messages(session.session_id, batch(1))
                    for way, ledger, pid in ways:
                        began, used = time.perf_counter(), cpu_seconds(pid)
                        await ledger.get_session(session.session_id)
                        milliseconds.add(what(length, state), way, (time.perf_counter() - began) * 1000)
                        cpu.add(what(length, state), way, (cpu_seconds(pid) - used) * 1000)

    keep(TITLE, "ms", milliseconds.by_what(), server, console)
    keep(CPU_TITLE, "ms of CPU", cpu.by_what(), server, console)
