"""What following gives and costs: how fast a commit reaches a follower elsewhere, and what writers pay for it."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
from rich.progress import track

from bench.medians import Medians
from bench.results import keep
from chatledger import ChatLedger, migrate
from chatledger.postgres.migrations import sql_folder

if TYPE_CHECKING:
    from rich.console import Console

LATENCY, WRITERS = "From an append to the event in another process", "Appends with and without followers"
P50, BARE_LISTEN, FOLLOW = "p50", "bare LISTEN", "chatledger's follow"
CLIENTS, TRANSACTIONS = 64, 50
ONE = f"1 message, {CLIENTS} writers, a session each"
WITHOUT, NOBODY, ALL = "no notification code", "chatledger, nobody follows", "chatledger, all are followed"
# Both print the moment of each event, by the machine's clock; "ready" once they wait for one.
BARE = """
import asyncio, sys, time, asyncpg
async def main(url, channel):
    connection = await asyncpg.connect(url)
    await connection.add_listener(channel, lambda *_: print(time.monotonic_ns(), flush=True))
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""
FOLLOWER = """
import asyncio, sys, time
from chatledger import ChatLedger
async def main(url, session_id):
    async with ChatLedger(url) as ledger:
        async for event in ledger.follow(session_id):
            print(time.monotonic_ns() if event.sequence else "ready", flush=True)
asyncio.run(main(*sys.argv[1:]))
"""
# What a writer sends to get the same to somebody who only LISTENs.
APPEND_AND_NOTIFY = """select pg_notify($1, ''), (
    select count(*) from chatledger.append_messages($2, array['{"role": "user", "content": "hi"}']::jsonb[]))"""


async def measure(database_url: str, bin_dir: Path, rounds: int, server: str, console: Console) -> None:
    """Measure both in turn, and keep the medians.

    Args:
        database_url: An empty database in a server with fsync on.
        bin_dir: Where pgbench is.
        rounds: How many times each way is measured.
        server: Its version.
        console: Where to print.
    """
    await _measure_latency(database_url, 20 * rounds, server, console)
    await _measure_writers(database_url, bin_dir, rounds, server, console)


async def _measure_latency(database_url: str, appends: int, server: str, console: Console) -> None:
    took: dict[str, list[float]] = {BARE_LISTEN: [], FOLLOW: []}
    async with ChatLedger(database_url) as ledger:
        channel, followed, other = f"bare_{uuid4().hex}", str(uuid4()), str(uuid4())
        for session_id in (followed, other):
            await ledger.create_session(session_id)
        await ledger.append_messages(followed, [{"role": "user", "content": "hi"}])
        processes = {
            way: await asyncio.create_subprocess_exec(sys.executable, "-c", code, database_url, name, stdout=PIPE)
            for way, code, name in ((BARE_LISTEN, BARE, channel), (FOLLOW, FOLLOWER, followed))
        }
        for process in processes.values():
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        connection = await asyncpg.connect(database_url)
        writes = {BARE_LISTEN: (APPEND_AND_NOTIFY, channel, other), FOLLOW: (APPEND_AND_NOTIFY, "nobody", followed)}
        await asyncio.sleep(1)  # until the follower LISTENs
        for number in track(range(-20, appends), "from commit to event", console=console):
            for way, process in processes.items():
                began = time.monotonic_ns()
                await connection.execute(*writes[way])
                assert process.stdout is not None
                if number >= 0:  # the first ones warm up
                    took[way].append((int(await process.stdout.readline()) - began) / 1e6)
                else:
                    await process.stdout.readline()
        await connection.close()
        for process in processes.values():
            process.kill()
            await process.wait()

    p99 = {way: statistics.quantiles(values, n=100)[98] for way, values in took.items()}
    rows = {P50: {way: statistics.median(values) for way, values in took.items()}, "p99": p99}
    keep(LATENCY, "ms", rows, server, console)


async def _measure_writers(database_url: str, bin_dir: Path, rounds: int, server: str, console: Console) -> None:
    """64 clients of pgbench, each appending to a session of its own."""
    ways = {
        WITHOUT: await _database(database_url, without=True),
        NOBODY: await _database(database_url),
        ALL: await _database(database_url, followed=True),
    }
    microseconds = Medians()
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        text = json.dumps({"role": "user", "content": "What should I pack for Oslo? " * 7})
        script.write(f"select from chatledger.append_messages('s' || :client_id, array['{text}']::jsonb[]);\n")
        script.flush()
        for _ in track(range(rounds), "64 writers", console=console):
            for way, url in ways.items():
                pgbench = await asyncio.create_subprocess_exec(
                    bin_dir / "pgbench", "-n", "-c", str(CLIENTS), "-j", "2", "-t", str(TRANSACTIONS), "-M", "prepared",
                    "-f", script.name, url, stdout=PIPE, stderr=PIPE,
                )  # fmt: skip
                output, errors = await pgbench.communicate()
                if pgbench.returncode:
                    raise RuntimeError(errors.decode())
                [rate] = re.findall(r"^tps = ([\d.]+) \(without", output.decode(), re.MULTILINE)
                microseconds.add(ONE, way, 1e6 / float(rate))

    keep(WRITERS, "µs an append", microseconds.by_what(), server, console)


async def _database(database_url: str, *, without: bool = False, followed: bool = False) -> str:
    """Create a database with a session for each client; return its URL."""
    name = f"bench_{uuid4().hex[:12]}"
    server = await asyncpg.connect(database_url)
    await server.execute(f"create database {name}")
    url = re.sub(r"/[^/?]*\?", f"/{name}?", database_url)
    await server.close()
    connection = await asyncpg.connect(url)
    await migrate(connection)
    if without:
        source = (sql_folder() / "functions" / "append_messages.sql").read_text("utf-8")
        plain, count = re.subn(r"\n *if v_is_watched.*?end if;", "", source, flags=re.DOTALL)
        assert count == 1
        await connection.execute(plain)
    for number in range(CLIENTS):
        await connection.execute("select chatledger.create_session($1)", f"s{number}")
    if followed:
        await connection.execute("select chatledger.follow_session(id, p_ttl => '1 hour') from chatledger.sessions")
    await connection.close()
    return url
