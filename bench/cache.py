"""What the session cache buys: latency, and Postgres' CPU, of reading a whole session with and without it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track
from rich.table import Table

from bench.appends import batch
from bench.medians import Medians
from chatledger import ChatLedger, Settings
from chatledger.connections import open_pool

if TYPE_CHECKING:
    from rich.console import Console

LENGTHS = (10, 100, 1_000, 10_000)


def cpu_seconds(pid: int) -> float:
    """CPU time of a server process, in steps far finer than a clock tick; Linux has it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def measure(database_url: str, redis_url: str, rounds: int, console: Console) -> None:
    """Read sessions of several lengths, unchanged and with one message more, in turn; print the medians."""
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
            for _ in track(range(rounds), f"reads of {length:,}", console=console):
                for state in ("unchanged", "one behind"):
                    if state == "one behind":
                        await plain.append_messages(session.session_id, batch(1))
                    for way, ledger, pid in (("without", plain, pids[0]), ("with cache", cached, pids[1])):
                        what, began, used = f"{length:,} messages, {state}", time.perf_counter(), cpu_seconds(pid)
                        await ledger.get_session(session.session_id)
                        milliseconds.add(what, way, (time.perf_counter() - began) * 1000)
                        cpu.add(what, way, (cpu_seconds(pid) - used) * 1000)

    table = Table("read", "way", "median ms", "of without", "Postgres CPU ms", "of without")
    for (what, took), worked in zip(milliseconds.by_what().items(), cpu.by_what().values(), strict=True):
        for way, median in took.items():
            ratios = f"{median / took['without']:.2f}", f"{worked[way] / worked['without']:.2f}"
            table.add_row(what, way, f"{median:.2f}", ratios[0], f"{worked[way]:.2f}", ratios[1])
        table.add_section()
    console.print(table)
