"""What an append costs as a session gets longer, and as the ledger gets bigger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
from rich.progress import track

from bench.appends import batch, new_sessions, timed
from bench.medians import Medians
from bench.results import keep
from bench.stores import Chatledger
from chatledger import ChatLedger, Settings, migrate
from chatledger.connections import open_pool

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.connections import Pool

BY_LENGTH, WAL_BY_LENGTH = "Appends by length of the session", "WAL of an append by length of the session"
BY_SIZE = "Appends by size of the ledger"
ONE = "1 message, one writer"
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
APPENDS = 100
SESSIONS, MESSAGES = 50_000, 5_000_000


async def append_one_by_one(store: Chatledger, sessions: list[str]) -> None:
    for n in range(APPENDS):
        await store.append(sessions[n % len(sessions)], batch(1))


async def measure_lengths(pool: Pool, rounds: int, server: str, console: Console) -> None:
    """Append to sessions of several lengths in turn, and keep the medians."""
    ours = Chatledger(ChatLedger(pool))
    sessions = dict(zip(LENGTHS, await new_sessions(ours.ledger, len(LENGTHS)), strict=True))
    for length, session in track(sessions.items(), "long sessions", console=console):
        for _ in range(0, length, 10_000):
            await ours.ledger.append_messages(session, batch(min(length, 10_000)))

    microseconds, wal_bytes = Medians(), Medians()
    await pool.execute("checkpoint")  # so that none begins among what is measured
    for number in track(range(-1, rounds), "appends by length", console=console):
        [sessions[LENGTHS[0]]] = await new_sessions(ours.ledger, 1)
        await ours.ledger.append_messages(sessions[LENGTHS[0]], batch(LENGTHS[0]))
        for length, session in sessions.items():
            before = await pool.fetchval("select pg_current_wal_insert_lsn()")
            took = await timed(append_one_by_one(ours, [session]))
            logged = await pool.fetchval("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)", before)
            if number < 0:
                continue  # the first change of a page after a checkpoint logs it whole
            microseconds.add(ONE, f"{length:,}", took / APPENDS * 1e6)
            wal_bytes.add(ONE, f"{length:,}", float(logged) / APPENDS)
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
        insert into chatledger.messages (session_id, sequence, message_id, role, content, created_at)
        select md5(n::text), place, md5(n || '/' || place), 'user', repeat('What should I pack? ', 10), now()
        from generate_series(1, {SESSIONS}) as n, generate_series(0, {MESSAGES // SESSIONS - 1}) as place;
        """
    )
    for tidy in ("vacuum analyze chatledger.messages", "checkpoint"):
        await pools[big].execute(tidy)
    for _ in track(range(rounds), "appends by size", console=console):
        for way, pool in pools.items():
            ours = Chatledger(ChatLedger(pool))
            sessions = await new_sessions(ours.ledger, APPENDS)
            took = await timed(append_one_by_one(ours, sessions))
            microseconds.add(ONE, way, took / APPENDS * 1e6)
    for pool in pools.values():
        await pool.close()
    for name in ways.values():
        await maintenance.execute(f"drop database {name}")
    await maintenance.close()
    keep(BY_SIZE, "µs an append", microseconds.by_what(), server, console)
