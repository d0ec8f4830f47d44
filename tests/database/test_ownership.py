"""G8: who asks for another user's session gets the answer of one that is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.helpers.sql import assistant, begin_stream, everything, header, new_session, refused, said, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

# One call of each function that is told who asks, as user $1.
CALLS = {
    "append_messages": """select chatledger.append_messages('s1', array['{"role": "user"}']::jsonb[], $1)""",
    "amend_message": "select chatledger.amend_message('s1', 'm0', '{\"content\": \"x\"}', p_user_id => $1)",
    "add_tool_call": 'select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\', $1)',
    "get_messages": "select chatledger.get_messages('s1', $1)",
    "update_session": "select chatledger.update_session('s1', $1, 'Title')",
    "truncate_session": "select chatledger.truncate_session('s1', 1, $1)",
    "fork_session": "select chatledger.fork_session('s1', 's2', p_user_id => $1)",
    "save_session": 'select chatledger.save_session(\'s1\', $1, 1, \'{"pinned": {"from": false, "to": true}}\')',
    "record_usage": "select chatledger.record_usage('s1', 'use', 1, 1, p_user_id => $1)",
    "begin_stream": "select chatledger.begin_stream('s1', 'o', p_user_id => $1, p_force => true)",
    "follow_session": "select chatledger.follow_session('s1', $1)",
    "renew_stream": "select chatledger.renew_stream('s1', coalesce((select max(fence) from chatledger.streams), 1),"
    " p_user_id => $1)",
    # These do not fail for a session that is not there.
    "read_session": "select chatledger.read_session('s1', $1)",
    "delete_session": "select chatledger.delete_session('s1', $1)",
    "end_stream": "select chatledger.end_stream('s1', (select max(fence) from chatledger.streams), $1)",
}
FAILING = [name for name in CALLS if name not in ("read_session", "delete_session", "end_stream")]
# Their own files say what these make of another's session.
ELSEWHERE = {"create_session", "list_sessions"}


async def test_every_function_that_is_told_who_asks_is_here(connection: Connection) -> None:
    rows = await connection.fetch(
        "select proname from pg_proc where pronamespace = 'chatledger'::regnamespace "
        "and 'p_user_id' = any (proargnames)"
    )
    assert {row["proname"] for row in rows} == {*CALLS, *ELSEWHERE}


async def session_of_u1(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1")])
    await begin_stream(connection)


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("asked_by", ["u1", None], ids=["the owner", "a trusted caller"])
async def test_owner_and_trusted_caller_may(connection: Connection, function: str, asked_by: str | None) -> None:
    await session_of_u1(connection)
    (answer, *_) = await connection.fetch(CALLS[function], asked_by)
    assert answer[0] is not False


@pytest.mark.parametrize("function", FAILING)
@pytest.mark.parametrize("asked_by", ["u2", "", "U1", "u1 "])
async def test_g8_stranger_gets_the_same_error_as_for_no_session(
    connection: Connection, function: str, asked_by: str
) -> None:
    with pytest.raises(asyncpg.PostgresError) as missing:
        await connection.execute(CALLS[function], asked_by)
    await session_of_u1(connection)
    before = await everything(connection)

    with refused("CL001", session_id="s1") as foreign:
        await connection.execute(CALLS[function], asked_by)

    assert said(foreign.value) == said(missing.value)
    assert await everything(connection) == before


@pytest.mark.parametrize("function", FAILING)
async def test_g8_session_without_an_owner_is_nobodys(connection: Connection, function: str) -> None:
    await new_session(connection, [user_json("m0")], user_id=None)
    with refused("CL001", session_id="s1"):
        await connection.execute(CALLS[function], "u1")


async def test_g8_stranger_reads_nothing(connection: Connection) -> None:
    await session_of_u1(connection)
    assert await connection.fetch(CALLS["read_session"], "u2") == []


async def test_g8_stranger_deletes_nothing(connection: Connection) -> None:
    await session_of_u1(connection)
    assert await connection.fetchval(CALLS["delete_session"], "u2") is False
    assert (await header(connection))["session_id"] == "s1"


async def test_g8_stranger_ends_no_stream(connection: Connection) -> None:
    await session_of_u1(connection)
    assert await connection.fetchval(CALLS["end_stream"], "u2") is False
    assert await connection.fetchval("select count(*) from chatledger.active_streams") == 1


async def test_g8_stranger_cannot_append_with_ids_that_are_stored(connection: Connection) -> None:
    """The retry of another user's message must not tell where that is."""
    await session_of_u1(connection)
    with refused("CL001", session_id="s1"):
        await connection.execute(
            """select chatledger.append_messages('s1',
                array['{"message_id": "m0", "role": "user", "content": "hi"}']::jsonb[], 'u2')"""
        )
