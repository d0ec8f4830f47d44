"""The rival that the benchmarks measure really collides, and really repeats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import asyncpg
import pytest

from bench import naive
from chatledger import Settings
from chatledger.postgres.connections import open_pool

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connect = Callable[[], Awaitable[Connection]]
BATCH = [{"message_id": f"m{n}", "role": "user", "content": "hi"} for n in range(3)]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, Settings(pool_size=2))
    async with pool.acquire() as connection, naive.schema(connection):
        yield pool
    await pool.close()


async def get_in_between(other: Connection, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let another connection append a message between reading the maximum and inserting, so many times."""
    read = naive.next_sequence
    left = list(range(times))

    async def read_then_lose_it(connection: Connection, session_id: str) -> int:
        sequence = await read(connection, session_id)
        if left:
            taken = {"message_id": f"other-{left.pop()}", "role": "user", "content": "first"}
            await naive.insert(other, session_id, sequence, [taken])
        return sequence

    monkeypatch.setattr(naive, "next_sequence", read_then_lose_it)


async def stored(connection: Connection) -> list[str]:
    rows = await connection.fetch(f"select message_id from {naive.SCHEMA}.messages order by sequence")
    return [row["message_id"] for row in rows]


@pytest.mark.usefixtures("pool")
async def test_two_that_read_the_same_maximum_collide(connect: Connect) -> None:
    first, second = await connect(), await connect()
    await second.execute("begin")
    assert await naive.next_sequence(first, "s1") == await naive.next_sequence(second, "s1") == 0
    await naive.insert(first, "s1", 0, BATCH)
    with pytest.raises(asyncpg.UniqueViolationError):
        await naive.insert(second, "s1", 0, BATCH)


@pytest.mark.parametrize("collisions", [0, 1, naive.RETRIES])
async def test_a_collision_is_retried(
    pool: Pool, connect: Connect, monkeypatch: pytest.MonkeyPatch, collisions: int
) -> None:
    other = await connect()
    await get_in_between(other, monkeypatch, collisions)
    assert await naive.append(pool, "s1", BATCH) == collisions
    assert (await stored(other))[collisions:] == ["m0", "m1", "m2"]


async def test_a_batch_is_lost_after_the_retries(pool: Pool, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    other = await connect()
    await get_in_between(other, monkeypatch, naive.RETRIES + 1)
    with pytest.raises(naive.BatchLost):
        await naive.append(pool, "s1", BATCH)
    assert len(await stored(other)) == naive.RETRIES + 1


async def test_drops_its_schema_after_a_failure(connection: Connection) -> None:
    async def fail() -> None:
        async with naive.schema(connection):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await connection.fetchval("select to_regnamespace($1)", naive.SCHEMA) is None
