"""purge_sessions: retention, a bounded batch a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import (
    add_call,
    append,
    assistant,
    begin_stream,
    call,
    everything,
    new_session,
    refused,
    run_out,
    user_json,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection


async def aged_session(connection: Connection, session_id: str, days: int) -> None:
    """A session with a row in every table, that nobody changed for so many days."""
    await new_session(connection, [user_json("m0"), assistant("m1")], session_id=session_id)
    await add_call(connection, call("c1"), session_id=session_id)
    await connection.execute("select chatledger.record_usage($1, 'use', 1, 1)", session_id)
    await age(connection, session_id, days)


async def age(connection: Connection, session_id: str, days: int) -> None:
    for change in (
        "update chatledger.sessions set updated_at = now() - make_interval(days => $2) where id = $1",
        "update chatledger.messages set created_at = now() - make_interval(days => $2) where session_id = $1",
    ):
        await connection.execute(change, session_id, days)


async def purge(connection: Connection, arguments: str = "'30 days'") -> int:
    return int(await connection.fetchval(f"select chatledger.purge_sessions({arguments})"))


async def left(connection: Connection) -> list[str]:
    return [row["id"] for row in await connection.fetch("select id from chatledger.sessions order by 1")]


async def test_sessions_that_nobody_changed_for_so_long_go(connection: Connection) -> None:
    await aged_session(connection, "old", 31)
    await aged_session(connection, "new", 29)

    assert await purge(connection) == 1
    assert await left(connection) == ["new"]


async def test_a_session_whose_last_message_is_newer_stays(connection: Connection) -> None:
    """Its row may not have been changed by that."""
    await aged_session(connection, "s1", 31)
    await connection.execute("update chatledger.messages set created_at = now() - interval '1 day' where sequence = 1")
    assert await purge(connection) == 0


async def test_a_session_that_is_streamed_stays(connection: Connection) -> None:
    await aged_session(connection, "s1", 31)
    await begin_stream(connection)
    assert await purge(connection) == 0
    await run_out(connection)
    assert await purge(connection) == 1


async def test_nothing_of_them_is_left(connection: Connection) -> None:
    await aged_session(connection, "old", 31)
    await purge(connection)
    assert await everything(connection) == []


async def test_nothing_else_changes(connection: Connection) -> None:
    await aged_session(connection, "new", 29)
    before = await everything(connection)
    await aged_session(connection, "old", 31)
    await purge(connection)
    assert await everything(connection) == before


async def test_age_counts_from_the_last_change_to_the_microsecond(connection: Connection) -> None:
    """Also within the hour that the index knows."""
    for name, hours in (("a", 3), ("b", 2), ("c", 1)):
        await new_session(connection, session_id=name)
        await connection.execute(
            "update chatledger.sessions set updated_at = now() - make_interval(hours => $2) where id = $1", name, hours
        )
    await purge(connection, "'1 hour 59 minutes'")
    assert await left(connection) == ["c"]


async def test_pinned_sessions_go_too(connection: Connection) -> None:
    await aged_session(connection, "old", 31)
    await connection.execute("update chatledger.sessions set pinned = true")
    assert await purge(connection) == 1


async def test_id_of_a_deleted_session_is_let_go_of_in_the_end(connection: Connection) -> None:
    await new_session(connection)
    await connection.execute("select chatledger.delete_session('s1')")
    assert await purge(connection) == 0

    await age(connection, "s1", 31)
    assert await purge(connection) == 1

    await new_session(connection, [user_json("m0")])


async def test_batch_is_bounded(connection: Connection) -> None:
    for number in range(5):
        await aged_session(connection, f"s{number}", 31)
    assert [await purge(connection, "'30 days', 2") for _ in range(4)] == [2, 2, 1, 0]


async def test_session_that_somebody_is_writing_to_is_left_out(connection: Connection, connect: Connect) -> None:
    await aged_session(connection, "busy", 31)
    await aged_session(connection, "old", 31)
    writer = await connect()

    writing = writer.transaction()
    await writing.start()
    await append(writer, [user_json("m2")], session_id="busy")
    assert await purge(connection) == 1
    await writing.commit()

    assert await left(connection) == ["busy"]
    assert await purge(connection) == 0  # the write made it young again


@pytest.mark.parametrize("older_than", ["null", "'-1 day'"])
async def test_g10_bad_age_is_refused(connection: Connection, older_than: str) -> None:
    await aged_session(connection, "old", 31)
    with refused("CL008", argument="older_than"):
        await purge(connection, older_than)
    assert await left(connection) == ["old"]


@pytest.mark.parametrize("limit", ["null", "0", "-1", "100001"])
async def test_g10_bad_limit_is_refused(connection: Connection, limit: str) -> None:
    with refused("CL008", argument="limit"):
        await purge(connection, f"'30 days', {limit}")
