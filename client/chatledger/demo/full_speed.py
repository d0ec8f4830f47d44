"""Many writers on one session without a pause, once counting for themselves, once through the ledger: what gets in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatledger.config import Settings
from chatledger.demo import naive
from chatledger.demo.batches import Batch, Writer, make_writer
from chatledger.ledger import ChatLedger
from chatledger.postgres.connections import open_pool

if TYPE_CHECKING:
    from chatledger.postgres.connections import Pool

WRITERS = 16
BATCHES = 20

Append = Callable[[Batch], Awaitable[int]]
"""Appends a batch, returns how many retries it took."""


@dataclass(slots=True)
class Outcome:
    """What became of a load."""

    batches: int
    messages: int
    batches_lost: int = 0
    messages_stored: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def messages_lost(self) -> int:
        """How many of the messages are not stored."""
        return self.messages - self.messages_stored


async def compare(database_url: str, session_id: str) -> tuple[Outcome, Outcome]:
    """Return what became of the load with MAX(sequence) + 1, and with the ledger.

    Raises:
        asyncpg.InsufficientPrivilegeError: This user may not create schemas here.
        asyncpg.TooManyConnectionsError: The server has no room for so many writers.
        ChatLedgerError: The ledger could not do it.
    """
    writers = [make_writer(f"task-{n}", "Python task", BATCHES) for n in range(1, WRITERS + 1)]
    # Both on the same connections: one for each writer, so that nobody waits for one.
    pool = await open_pool(database_url, Settings(pool_size=WRITERS + 1))
    try:
        await _warm_up(pool)
        async with pool.acquire() as connection, naive.schema(connection):
            without = await write_all(writers, lambda batch: naive.append(pool, session_id, batch))
            without.messages_stored = await naive.count(connection, session_id)

        async with ChatLedger(pool) as ledger:
            load = await ledger.create_session(f"{session_id}-full-speed")
            try:
                through = await write_all(writers, lambda batch: _append(ledger, load.session_id, batch))
                through.messages_stored = len(await ledger.get_messages(load.session_id, limit=None))
            finally:
                await ledger.delete_session(load.session_id)
    finally:
        await pool.close()
    return without, through


async def _warm_up(pool: Pool) -> None:
    # Opening connections is not what is compared.
    opened = [await pool.acquire() for _ in range(WRITERS + 1)]
    for connection in opened:
        await pool.release(connection)


async def write_all(writers: Sequence[Writer], append: Append) -> Outcome:
    """Let all writers write at once, each its batches one after the other, as fast as it can."""
    outcome = Outcome(sum(len(writer.batches) for writer in writers), sum(len(writer.messages) for writer in writers))
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(_write(writer, append, outcome))
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _write(writer: Writer, append: Append, outcome: Outcome) -> None:
    for batch in writer.batches:
        try:
            retries = await append(batch)
        except naive.BatchLost:
            retries = naive.RETRIES
            outcome.batches_lost += 1
        outcome.retries += retries  # not "+= await": that reads the old value before it waits


async def _append(ledger: ChatLedger, session_id: str, batch: Batch) -> int:
    await ledger.append_messages(session_id, batch)
    return 0
