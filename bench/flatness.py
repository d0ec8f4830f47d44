"""What an append costs as a session gets longer, and as the ledger gets bigger."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

import asyncpg
from rich.progress import track

from bench.appends import batch, new_sessions, timed
from bench.medians import Medians
from bench.results import keep
from bench.stores import Chatledger
from chatledger import ChatLedger, Settings, migrate
from chatledger.postgres.connections import open_pool

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.postgres.connections import Pool

BY_LENGTH, WAL_BY_LENGTH = "Appends by length of the session", "WAL of an append by length of the session"
BY_SIZE = "Appends by size of the ledger"
ONE = "1 message, one writer"
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
APPENDS, FEW = 100, 10
SESSIONS, MESSAGES = 50_000, 5_000_000


async def append_one_by_one(store: Chatledger, sessions: list[str], appends: int) -> None:
    for n in range(appends):
        await store.append(sessions[n % len(sessions)], batch(1))


async def session_of(length: int, ledger: ChatLedger) -> str:
    [session] = await new_sessions(ledger, 1)
    for _ in range(0, length, 10_000):
        await ledger.append_messages(session, batch(min(length, 10_000)))
    return session


async def wal_of(pool: Pool, append: Awaitable[None]) -> float:
    before = await pool.fetchval("select pg_current_wal_insert_lsn()")
    await append
    return float(await pool.fetchval("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)", before))


async def measure_lengths(pool: Pool, rounds: int, server: str, console: Console) -> None:
    """Append to sessions of several lengths in turn, and keep the medians."""
    ours = Chatledger(ChatLedger(pool))
    # A session gets so few of the appends that it stays as long as we say, within 10 %: the short ones are made anew.
    long = {
        length: [await session_of(length, ours.ledger)]
        for length in track(LENGTHS, "long sessions", console=console)
        if length >= 10 * 2 * FEW * (rounds + 1)
    }
    microseconds, wal_bytes = Medians(), Medians()
    for number in track(range(-1, rounds), "appends by length", console=console):
        for length in LENGTHS:
            count = max(1, 2 * 10 * FEW // length)
            sessions = long.get(length) or [await session_of(length, ours.ledger) for _ in range(count)]
            took = await timed(append_one_by_one(ours, sessions, FEW))
            # One by one, since now and then one logs a whole page: the first change of it after a checkpoint.
            logged = [await wal_of(pool, ours.append(session, batch(1))) for session in (sessions * FEW)[-FEW:]]
            if number >= 0:  # the first time, pages and plans are cold
                microseconds.add(ONE, f"{length:,}", took / FEW * 1e6)
                for wal in logged:
                    wal_bytes.add(ONE, f"{length:,}", wal)
    keep(BY_LENGTH, "µs an append", microseconds.by_what(), server, console)
    keep(WAL_BY_LENGTH, "bytes an append", wal_bytes.by_what(), server, console)


async def measure_sizes(database_url: str, rounds: int, server: str, console: Console) -> None:
    """Append to a ledger that is empty and to one of 5,000,000 messages in turn, and keep the medians."""
    big = f"{MESSAGES:,} messages"
    ways = {"empty": "bench_empty", big: "bench_big"}
    microseconds = Medians()
    maintenance = await asyncpg.connect(database_url)
    for name in ways.values():
        await maintenance.execute(f"create database {name}")
    pools = {
        way: await open_pool(database_url.replace("/postgres?", f"/{name}?"), Settings(pool_size=1))
        for way, name in ways.items()
    }
    for pool in pools.values():
        async with pool.acquire() as connection:
            await migrate(connection)
    console.print(f"storing {MESSAGES:,} messages …")
    await pools[big].execute(
        f"""
        insert into chatledger.sessions (id, user_id, next_sequence, created_at, updated_at)
        select md5(n::text), 'u' || n % 1000, {MESSAGES // SESSIONS}, now(), now()
        from generate_series(1, {SESSIONS}) as n;
        insert into chatledger.messages (session_id, sequence, message_id, role, content, version, created_at)
        select md5(n::text), place, md5(n || '/' || place), 'user', repeat('What should I pack? ', 10), place + 2, now()
        from generate_series(1, {SESSIONS}) as n, generate_series(0, {MESSAGES // SESSIONS - 1}) as place;
        """
    )
    for tidy in ("vacuum analyze chatledger.messages", "checkpoint"):
        await pools[big].execute(tidy)
    for _ in track(range(rounds), "appends by size", console=console):
        for way, pool in pools.items():
            ours = Chatledger(ChatLedger(pool))
            sessions = await new_sessions(ours.ledger, APPENDS)
            took = await timed(append_one_by_one(ours, sessions, APPENDS))
            microseconds.add(ONE, way, took / APPENDS * 1e6)
    for pool in pools.values():
        await pool.close()
    for name in ways.values():
        await maintenance.execute(f"drop database {name}")
    await maintenance.close()
    keep(BY_SIZE, "µs an append", microseconds.by_what(), server, console)
