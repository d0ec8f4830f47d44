"""``python -m bench``: medians, from runs in turn on an embedded server, and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from bench import appends, cache, flatness, function, lists, loads, notifications, page, parts
from chatledger import Settings, embedded, migrate
from chatledger.postgres.connections import open_pool


async def run(servers: embedded.EmbeddedServers, rounds: int, big: bool, console: Console) -> None:
    if servers.redis_url is None:
        raise SystemExit("The benchmarks need the embedded Redis too.")
    pool = await open_pool(servers.database_url, Settings(pool_size=appends.WRITERS + 1))
    async with pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        server = await pool.fetchval("show server_version")
        await function.measure(servers, rounds, server, console)
        await appends.measure(pool, servers.redis_url, 3 * rounds, server, console)
        await flatness.measure_lengths(pool, 3 * rounds, server, console)
        await loads.measure(pool, 3 * rounds, server, console)
        await loads.measure_memory(pool, server, console)
        await cache.measure(servers.database_url, servers.redis_url, 9 * rounds, server, console)
        await notifications.measure(servers.database_url, servers.bin_dir, rounds, server, console)
        await lists.measure(pool, rounds, server, console)
        if big:
            await flatness.measure_sizes(servers.database_url, rounds, server, console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--big", action="store_true", help="with appends to a ledger of 5,000,000 messages")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    folder.chmod(0o755)  # for the server's user, when we are root
    try:
        with embedded.start(folder / "without fsync", durable=False) as servers:
            asyncio.run(parts.measure(servers, arguments.rounds, Console()))
        with embedded.start(folder / "with fsync") as servers:
            asyncio.run(run(servers, arguments.rounds, arguments.big, Console()))
    finally:
        shutil.rmtree(folder)
    page.write()


main()
