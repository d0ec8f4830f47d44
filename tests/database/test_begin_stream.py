"""begin_stream: at most one holder of a session's stream at a time (G7)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.helpers.sql import (
    append,
    begin_stream,
    everything,
    header,
    new_session,
    one,
    refused,
    run_out,
    said,
    truncate,
    until_waiting,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection


async def test_the_holder_gets_a_fence_and_learns_where_the_session_is(connection: Connection) -> None:
    await new_session(connection, users(3))
    await truncate(connection, 2)
    before = await connection.fetchval("select clock_timestamp()")

    lease = await begin_stream(connection, ttl=timedelta(minutes=5))

    assert (lease["version"], lease["next_sequence"], lease["message_count"]) == (3, 3, 2)
    assert timedelta(minutes=5) <= lease["expires_at"] - before < timedelta(minutes=6)
    (row,) = await append(connection, [user_json("a")], fence=lease["fence"])
    assert row["appended"]


async def test_g7_second_one_is_refused_and_told_who_has_it(connection: Connection) -> None:
    await new_session(connection)
    lease = await begin_stream(connection, "host-1:4711")
    before = await everything(connection)

    with refused("CL006", session_id="s1", holder="host-1:4711") as refusal:
        await begin_stream(connection, "host-2:815")
    assert datetime.fromisoformat(said(refusal.value)["detail"]["expires_at"]) == lease["expires_at"]

    assert await everything(connection) == before


async def test_g7_of_twenty_at_once_one_gets_it(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    callers = [await connect() for _ in range(20)]
    answers = await asyncio.gather(*(begin_stream(caller) for caller in callers), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, asyncpg.PostgresError)]
    assert [said(refusal)["sqlstate"] for refusal in refusals] == ["CL006"] * 19


async def test_g7_a_lease_that_ran_out_is_free_and_its_holder_is_refused(connection: Connection) -> None:
    await new_session(connection)
    old = await begin_stream(connection, "asleep")
    await run_out(connection)
    with refused("CL005"):
        await append(connection, [user_json("a")], fence=old["fence"])

    new = await begin_stream(connection, "awake")

    assert new["fence"] > old["fence"]
    with refused("CL005", fence=old["fence"]):
        await append(connection, [user_json("a")], fence=old["fence"])
    await append(connection, [user_json("b")], fence=new["fence"])


async def test_an_operator_takes_over_by_force(connection: Connection) -> None:
    await new_session(connection)
    old = await begin_stream(connection)
    new = await begin_stream(connection, "operator", force=True)
    assert new["fence"] > old["fence"]
    with refused("CL005"):
        await append(connection, [user_json("a")], fence=old["fence"])


async def test_the_same_stream_again_gets_the_same_lease(connection: Connection) -> None:
    """The retry of a call whose answer got lost is not held up by itself, nor does it make itself stale."""
    await new_session(connection)
    first = await begin_stream(connection, stream_id="mine")
    before = await everything(connection)

    for force in (False, True):
        assert await begin_stream(connection, stream_id="mine", force=force) == first
    assert await everything(connection) == before

    await begin_stream(connection, stream_id="other", force=True)
    with refused("CL006"):
        await begin_stream(connection, stream_id="mine")


async def test_fences_only_go_up(connection: Connection) -> None:
    await new_session(connection)
    fences = []
    for end in (
        "select chatledger.end_stream('s1', {fence})",
        "update chatledger.streams set expires_at = clock_timestamp()",
        "select chatledger.truncate_session('s1', 0)",
    ):
        fences.append((await begin_stream(connection, force=True))["fence"])
        await connection.execute(end.format(fence=fences[-1]))
    for purge in ("select chatledger.delete_session('s1')", "delete from chatledger.sessions"):
        await connection.execute(purge)
    await new_session(connection)  # created anew under the same id
    fences.append((await begin_stream(connection))["fence"])
    assert fences == sorted(set(fences))


async def test_fences_cannot_be_guessed(connection: Connection) -> None:
    await new_session(connection)
    fences = [(await begin_stream(connection, force=True))["fence"] for _ in range(20)]
    assert len({later - earlier for earlier, later in pairwise(fences)}) > 10
    assert max(fences) < 2**53  # JavaScript's numbers are exact up to there


async def test_a_deleted_session_has_no_stream(connection: Connection) -> None:
    await new_session(connection)
    await begin_stream(connection)
    await connection.execute("select chatledger.delete_session('s1')")
    assert await connection.fetch("select * from chatledger.active_streams") == []
    assert await connection.fetch("select from chatledger.streams") == []
    with refused("CL001"):
        await begin_stream(connection)


async def test_the_lease_is_not_part_of_the_sessions_content(connection: Connection) -> None:
    await new_session(connection, users(2))
    before = await header(connection)
    lease = await begin_stream(connection)
    await connection.execute("select chatledger.renew_stream('s1', $1)", lease["fence"])
    await connection.execute("select chatledger.end_stream('s1', $1)", lease["fence"])
    assert await header(connection) == before


async def test_others_write_without_the_lease(connection: Connection) -> None:
    await new_session(connection)
    await begin_stream(connection)
    (row,) = await append(connection, [user_json("a")])
    assert row["appended"]


async def test_waits_for_whoever_writes_and_sees_what_that_did(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    first, second = await connect(), await connect()
    transaction = first.transaction()
    await transaction.start()
    await begin_stream(first, "first")
    waiting = asyncio.create_task(begin_stream(second))
    await until_waiting(connection)
    await transaction.commit()
    with refused("CL006", holder="first"):
        await waiting


async def test_active_streams_shows_who_streams(connection: Connection) -> None:
    for session_id in ("s1", "s2", "s3"):
        await new_session(connection, session_id=session_id)
        await begin_stream(connection, f"holder of {session_id}", session_id=session_id)
    await run_out(connection, "s2")
    await connection.execute("select chatledger.end_stream('s3', fence) from chatledger.streams")

    row = await one(connection, "select *, expires_at - began_at as lasts from chatledger.active_streams")
    assert (row["session_id"], row["user_id"], row["holder"]) == ("s1", "u1", "holder of s1")
    assert row["lasts"] == timedelta(hours=1)


# p_max_streams


async def test_a_user_has_at_most_so_many_streams(connection: Connection) -> None:
    for session_id in ("s1", "s2", "s3", "s4"):
        await new_session(connection, session_id=session_id)
    await new_session(connection, session_id="bob's", user_id="u2")
    for session_id in ("s1", "s2", "bob's"):
        await begin_stream(connection, session_id=session_id, max_streams=2)
    before = await everything(connection)

    with refused("CL013", session_id="s3", streams=2, max_streams=2):
        await begin_stream(connection, session_id="s3", max_streams=2)
    assert await everything(connection) == before

    await begin_stream(connection, session_id="s2", max_streams=2, force=True)  # takes the place of one
    await run_out(connection, "s1")
    await connection.execute("select chatledger.end_stream('s2', fence) from chatledger.active_streams")
    for session_id in ("s3", "s4"):
        await begin_stream(connection, session_id=session_id, max_streams=2)


async def test_a_session_of_nobodys_has_no_limit(connection: Connection) -> None:
    for session_id in ("s1", "s2"):
        await new_session(connection, session_id=session_id, user_id=None)
        await begin_stream(connection, session_id=session_id, max_streams=1)


async def test_so_it_is_when_twenty_begin_at_once(connection: Connection, connect: Connect) -> None:
    callers = [await connect() for _ in range(20)]
    for number in range(20):
        await new_session(connection, session_id=f"s{number}")
    answers = await asyncio.gather(
        *(begin_stream(caller, session_id=f"s{number}", max_streams=3) for number, caller in enumerate(callers)),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, asyncpg.PostgresError)]
    assert [said(refusal)["sqlstate"] for refusal in refusals] == ["CL013"] * 17
    assert await connection.fetchval("select count(*) from chatledger.active_streams") == 3


async def test_a_limit_of_one_user_holds_nobody_else_up(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    await new_session(connection, session_id="s2", user_id="u2")
    holder = await connect()
    async with holder.transaction():
        await begin_stream(holder, max_streams=1)
        await begin_stream(connection, session_id="s2", max_streams=1)


async def test_nobody_who_waits_for_a_user_holds_a_session(connection: Connection, connect: Connect) -> None:
    """Else appends to that session would wait for somebody else's open transaction."""
    await new_session(connection)
    await new_session(connection, session_id="s2")
    holder, waiter = await connect(), await connect()
    async with holder.transaction():
        await begin_stream(holder, max_streams=1)
        beginning = asyncio.create_task(begin_stream(waiter, session_id="s2", max_streams=2))
        await until_waiting(connection)
        await append(connection, [user_json("a")], session_id="s2")
    await beginning


async def test_who_may_not_call_us_cannot_keep_others_from_streaming(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    stranger = await connect()
    async with stranger.transaction():
        await stranger.execute("create role stranger; set local role stranger")
        for key in ("chatledger.streams u1", "chatledger.migrations"):
            await stranger.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", key)
        await begin_stream(connection, max_streams=1)
        await stranger.execute("reset role; drop role stranger")


# Bad input


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("holder", {"holder": None}),
        ("holder", {"holder": ""}),
        ("holder", {"holder": "x" * 256}),
        ("ttl", {"ttl": None}),
        ("ttl", {"ttl": timedelta(0)}),
        ("ttl", {"ttl": timedelta(seconds=-1)}),
        ("ttl", {"ttl": timedelta(days=1, seconds=1)}),
        ("stream_id", {"stream_id": ""}),
        ("stream_id", {"stream_id": "x" * 256}),
        ("max_streams", {"max_streams": 0}),
        ("session_id", {"session_id": None}),
    ],
)
async def test_g10_bad_arguments_are_refused(connection: Connection, argument: str, given: dict[str, Any]) -> None:
    await new_session(connection)
    with refused("CL008", argument=argument):
        await begin_stream(connection, **given)


async def test_missing_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await begin_stream(connection)
