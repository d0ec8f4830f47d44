"""``python -m bench``: ratios of medians, from runs in turn on one embedded server with fsync on."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bench import appends, cache, loads
from chatledger import Settings, embedded, migrate
from chatledger.connections import open_pool


async def run(servers: embedded.EmbeddedServers, rounds: int, console: Console) -> None:
    pool = await open_pool(servers.database_url, Settings(pool_size=appends.WRITERS + 1))
    async with pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        await appends.measure(pool, rounds, console)
        await loads.measure(pool, 3 * rounds, console)
    if servers.redis_url is not None and sys.platform == "linux":
        await cache.measure(servers.database_url, servers.redis_url, 3 * rounds, console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    folder.chmod(0o755)  # for the server's user, when we are root
    try:
        with embedded.start(folder) as servers:
            asyncio.run(run(servers, rounds, Console()))
    finally:
        shutil.rmtree(folder)


main()
