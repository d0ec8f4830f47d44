"""The first page of a user's sessions, in a ledger with a million of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.progress import track

from bench.medians import Medians
from bench.results import keep

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.postgres.connections import Pool

TITLE, PAGE = "Lists of sessions", "first page of 50"
SESSIONS, OF_A_USER = 1_000_000, 10_000
SPREAD, AT_ONCE = f"{OF_A_USER:,} sessions of a year", f"{OF_A_USER:,} sessions of an hour"


async def measure(pool: Pool, rounds: int, server: str, console: Console) -> None:
    """Fill the ledger with sessions of many users, and keep the median of the server's time for a page."""
    console.print(f"storing {SESSIONS:,} sessions …")
    await pool.execute(
        f"""
        insert into chatledger.sessions (id, user_id, title, created_at, updated_at)
        select md5('list' || n), case when n <= {OF_A_USER} then 'spread' when n <= {2 * OF_A_USER} then 'at once'
                else 'u' || n % 10000 end, 'Session ' || n, now() - interval '1 year',
            case when n between {OF_A_USER + 1} and {2 * OF_A_USER}
                then date_trunc('hour', now()) + n % 3600 * interval '1 second'
                else now() - n::bigint * 7919 % 525600 * interval '1 minute' end
        from generate_series(1, {SESSIONS}) as n
        """
    )
    await pool.execute("vacuum analyze chatledger.sessions")
    milliseconds = Medians()
    for _ in track(range(3 * rounds), "lists", console=console):
        for way, user in ((SPREAD, "spread"), (AT_ONCE, "at once"), ("all users", None)):
            plan = await pool.fetchval(
                "explain (analyze, timing off, format json) select * from chatledger.list_sessions($1)", user
            )
            milliseconds.add(PAGE, way, json.loads(plan)[0]["Execution Time"])
    keep(TITLE, "ms of the server", milliseconds.by_what(), server, console)
