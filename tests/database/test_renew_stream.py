"""renew_stream: a lease lasts as long as its holder renews it in time (G7)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import append, begin_stream, everything, new_session, refused, run_out, user_json

if TYPE_CHECKING:
    from datetime import datetime

    from tests.helpers.sql import Connect, Connection


async def renew(connection: Connection, fence: int | None, ttl: timedelta | None = timedelta(hours=1)) -> datetime:
    expires_at: datetime = await connection.fetchval("select chatledger.renew_stream('s1', $1, $2)", fence, ttl)
    return expires_at


async def test_lets_the_lease_last_longer(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection, ttl=timedelta(minutes=1))
    expires_at = await renew(connection, lease["fence"], timedelta(hours=2))
    assert expires_at - lease["expires_at"] > timedelta(minutes=118)
    assert await connection.fetchval("select expires_at from chatledger.active_streams") == expires_at
    await append(connection, [user_json("a")], fence=lease["fence"])


async def test_g7_a_lease_that_ran_out_stays_lost_also_when_nobody_took_it(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection)
    await run_out(connection)
    before = await everything(connection)
    with refused("CL005", fence=lease["fence"]):
        await renew(connection, lease["fence"])
    assert await everything(connection) == before


async def test_g7_a_lease_that_was_taken_over_or_ended_is_refused(connection: Connection) -> None:
    await new_session(connection)
    old = await begin_stream(connection)
    new = await begin_stream(connection, force=True)
    with refused("CL005", fence=old["fence"]):
        await renew(connection, old["fence"])
    await connection.execute("select chatledger.end_stream('s1', $1)", new["fence"])
    with refused("CL005"):
        await renew(connection, new["fence"])


async def test_g7_a_fence_that_was_never_given_is_refused(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL005", fence=0):
        await renew(connection, 0)


@pytest.mark.parametrize(
    ("argument", "fence", "ttl"),
    [
        ("fence", None, timedelta(hours=1)),
        ("ttl", 1, None),
        ("ttl", 1, timedelta(0)),
        ("ttl", 1, timedelta(days=2)),
    ],
)
async def test_g10_bad_arguments_are_refused(
    connection: Connection, argument: str, fence: int | None, ttl: timedelta | None
) -> None:
    await new_session(connection)
    await begin_stream(connection)
    with refused("CL008", argument=argument):
        await renew(connection, fence, ttl)


async def test_missing_session_is_refused(connection: Connection) -> None:
    with refused("CL001"):
        await renew(connection, 1)


async def test_a_renewal_never_shortens(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection, ttl=timedelta(hours=2))
    assert await renew(connection, lease["fence"], timedelta(minutes=1)) == lease["expires_at"]


async def test_a_renewal_does_not_wait_for_a_writer(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    lease = await begin_stream(connection, ttl=timedelta(minutes=1))
    writer = await connect()
    async with writer.transaction():
        await append(writer, [user_json("a")])
        assert await renew(connection, lease["fence"]) > lease["expires_at"]


async def test_renewals_update_the_streams_row_in_place(connection: Connection) -> None:
    """HOT: the index of the streams does not grow with heartbeats."""
    await new_session(connection)
    lease = await begin_stream(connection)
    count = "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'streams'"
    async with connection.transaction():
        updates, hot = await connection.fetchrow(count) or (0, 0)
        for _ in range(20):
            await renew(connection, lease["fence"])
        assert tuple(await connection.fetchrow(count) or ()) == (updates + 20, hot + 20)
