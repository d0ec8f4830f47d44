"""end_stream: the lease is given back, by its holder and nobody else (G7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.sql import append, begin_stream, everything, new_session, refused, run_out, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def end(connection: Connection, fence: int | None) -> bool:
    ended: bool = await connection.fetchval("select chatledger.end_stream('s1', $1)", fence)
    return ended


async def test_the_next_stream_begins_at_once(connection: Connection) -> None:
    await new_session(connection)
    first = await begin_stream(connection)
    assert await end(connection, first["fence"])
    assert await connection.fetch("select * from chatledger.active_streams") == []
    with refused("CL005"):
        await append(connection, [user_json("a")], fence=first["fence"])
    assert (await begin_stream(connection))["fence"] > first["fence"]


async def test_ending_twice_is_harmless(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection)
    assert await end(connection, lease["fence"])
    before = await everything(connection)
    assert not await end(connection, lease["fence"])
    assert await everything(connection) == before


async def test_g7_who_does_not_hold_it_ends_nothing(connection: Connection) -> None:
    await new_session(connection)
    old = await begin_stream(connection)
    new = await begin_stream(connection, force=True)
    before = await everything(connection)
    for fence in (old["fence"], new["fence"] + 1, None):
        assert not await end(connection, fence)
    assert await everything(connection) == before


async def test_a_lease_that_ran_out_is_not_held(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection)
    await run_out(connection)
    assert not await end(connection, lease["fence"])


async def test_missing_session_is_no_error(connection: Connection) -> None:
    assert not await end(connection, 1)
