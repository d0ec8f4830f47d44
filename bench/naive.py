"""Appends without a ledger: MAX(sequence) + 1, repeated after a unique violation. In a schema of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from chatledger.postgres.connections import Pool
    from chatledger.postgres.functions import Connection

SCHEMA = "max_plus_one"
RETRIES = 5
Batch = Sequence[Mapping[str, Any]]


class BatchLost(Exception):
    """Every try met a sequence that somebody else had taken meanwhile."""


@asynccontextmanager
async def schema(connection: Connection) -> AsyncIterator[None]:
    """Make the schema, and drop it afterwards."""
    await connection.execute(
        f"""
        create schema {SCHEMA};
        create table {SCHEMA}.messages (
            session_id text    not null,
            sequence   integer not null,
            message_id text    not null,
            role       text    not null,
            content    text,
            primary key (session_id, sequence)
        );
        """
    )
    try:
        yield
    finally:
        await connection.execute(f"drop schema {SCHEMA} cascade")


async def append(pool: Pool, session_id: str, batch: Batch) -> int:
    """Append a batch as a backend without a ledger would; return how many retries it took.

    Raises:
        BatchLost: Every try met a sequence that was taken; nothing of the batch is stored.
    """
    for retries in range(RETRIES + 1):
        try:
            async with pool.acquire() as connection, connection.transaction():
                first = await next_sequence(connection, session_id)
                await insert(connection, session_id, first, batch)
        except asyncpg.UniqueViolationError:
            continue  # somebody took this sequence: count again
        return retries
    raise BatchLost


async def next_sequence(connection: Connection, session_id: str) -> int:
    """Return what looks like the next free sequence."""
    return int(
        await connection.fetchval(
            f"select coalesce(max(sequence), -1) + 1 from {SCHEMA}.messages where session_id = $1", session_id
        )
    )


async def insert(connection: Connection, session_id: str, first: int, batch: Batch) -> None:
    """Insert a batch from a sequence on."""
    await connection.execute(
        f"""
        insert into {SCHEMA}.messages (session_id, sequence, message_id, role, content)
        select $1, $2 + input.position::integer - 1, input.message_id, input.role, input.content
        from unnest($3::text[], $4::text[], $5::text[]) with ordinality
            as input (message_id, role, content, position)
        """,
        session_id,
        first,
        [message["message_id"] for message in batch],
        [message["role"] for message in batch],
        [message["content"] for message in batch],
    )
