"""delete_session: G11 as SQL callers see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import (
    add_call,
    append,
    assistant,
    call,
    everything,
    new_session,
    refused,
    said,
    until_waiting,
    user_json,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection

LATE_WRITES = [
    "select chatledger.append_messages('s1', array['{\"role\": \"user\"}']::jsonb[])",
    "select chatledger.amend_message('s1', 'm0', '{\"content\": \"late\"}')",
    'select chatledger.add_tool_call(\'s1\', \'{"id": "c9", "function": {"name": "f"}}\')',
    "select chatledger.create_session('s1', 'u1')",
    "select chatledger.update_session('s1', p_title => 'late')",
    "select chatledger.record_usage('s1', 'late', 1, 1)",
    "select chatledger.truncate_session('s1', 0)",
    "select chatledger.fork_session('s1', 's2')",
]


async def full_session(connection: Connection, session_id: str = "s1") -> None:
    """A session with a row in every table."""
    await new_session(connection, [user_json("m0", "a secret"), assistant("m1")], session_id=session_id)
    await add_call(connection, call("c1"), session_id=session_id)
    await connection.execute(
        "select chatledger.record_usage($1, 'use', 1, 1), "
        "chatledger.update_session($1, p_title => 'a secret', p_metadata => '{\"a\": \"a secret\"}')",
        session_id,
    )


async def delete(connection: Connection, session_id: str = "s1") -> bool:
    return bool(await connection.fetchval("select chatledger.delete_session($1)", session_id))


async def test_deleted_session_is_gone_for_every_reader(connection: Connection) -> None:
    await full_session(connection)

    assert await delete(connection)

    assert await connection.fetch("select from chatledger.read_session('s1')") == []
    assert await connection.fetch("select from chatledger.list_sessions('u1')") == []
    assert await connection.fetch("select from chatledger.list_sessions(null)") == []
    assert await connection.fetch("select from chatledger.session_overview") == []
    assert await connection.fetch("select from chatledger.transcript") == []
    with refused("CL001", session_id="s1"):
        await connection.execute("select chatledger.get_messages('s1')")


async def test_nothing_of_what_was_said_is_kept(connection: Connection) -> None:
    await full_session(connection)
    await delete(connection)

    (row,) = await everything(connection)  # of all tables

    assert "secret" not in row
    assert "u1" not in row


async def test_other_sessions_stay(connection: Connection) -> None:
    await full_session(connection, "s2")
    before = await everything(connection)
    await full_session(connection)

    await delete(connection)

    after = await everything(connection)
    assert set(before) < set(after)
    assert len(after) == len(before) + 1


async def test_deleting_again_returns_false_and_changes_nothing(connection: Connection) -> None:
    await full_session(connection)
    await delete(connection)
    before = await everything(connection)

    assert not await delete(connection)
    assert await everything(connection) == before


@pytest.mark.parametrize("session_id", ["unknown", "", None])
async def test_deleting_what_is_not_there_returns_false(connection: Connection, session_id: str | None) -> None:
    deleted = await connection.fetchval("select chatledger.delete_session($1)", session_id)
    assert deleted is False


@pytest.mark.parametrize("late_write", LATE_WRITES)
async def test_g11_late_write_does_not_bring_a_session_back(connection: Connection, late_write: str) -> None:
    await full_session(connection)
    await delete(connection)
    before = await everything(connection)

    with refused("CL001", session_id="s1") as info:
        await connection.execute(late_write)

    assert said(info.value)["message"] == 'session "s1" not found'
    assert await everything(connection) == before


# create_session waits for nobody: until the delete commits, it finds the session that is there.
@pytest.mark.parametrize("late_write", [write for write in LATE_WRITES if "create_session" not in write])
async def test_g11_also_when_the_delete_commits_while_the_write_waits(
    connection: Connection, connect: Connect, late_write: str
) -> None:
    await full_session(connection)
    deleter, writer = await connect(), await connect()

    deleting = deleter.transaction()
    await deleting.start()
    await delete(deleter)
    writing = asyncio.create_task(writer.execute(late_write))
    await until_waiting(connection)
    await deleting.commit()

    with refused("CL001", session_id="s1"):
        await writing
    assert len(await everything(connection)) == 1


async def test_g11_delete_waits_for_a_write_and_takes_it_along(connection: Connection, connect: Connect) -> None:
    await full_session(connection)
    writer, deleter = await connect(), await connect()

    writing = writer.transaction()
    await writing.start()
    await append(writer, [user_json("m9")])
    deleting = asyncio.create_task(delete(deleter))
    await until_waiting(connection)
    await writing.commit()

    assert await deleting
    assert len(await everything(connection)) == 1


async def test_g11_delete_that_is_rolled_back_leaves_the_session(connection: Connection) -> None:
    await full_session(connection)
    before = await everything(connection)

    deleting = connection.transaction()
    await deleting.start()
    await delete(connection)
    await deleting.rollback()

    assert await everything(connection) == before
