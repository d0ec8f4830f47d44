"""G12 for a connection that planned its calls while the ledger was empty, and has kept those plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import append, new_session, rows_touched, users

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection

CALLS = {
    "append_messages": """select * from chatledger.append_messages('s1', array[
        jsonb_build_object('message_id', gen_random_uuid(), 'role', 'user', 'content', 'hi')], {user})""",
    "append_messages, a retry": """select * from chatledger.append_messages('s1',
        array['{{"message_id": "m0", "role": "user", "content": "hi"}}']::jsonb[], {user})""",
    "amend_message": """select * from chatledger.amend_message('s1', 'm1', '{{"content": "hi"}}',
        p_user_id => {user})""",
    "add_tool_call": """select * from chatledger.add_tool_call('s1',
        jsonb_build_object('id', gen_random_uuid(), 'function', '{{"name": "f"}}'::jsonb), {user})""",
    "save_session": """select * from chatledger.save_session('s1', {user}, 1, '{{"title": {{"to": "hi"}}}}',
        array[jsonb_build_object('message_id', gen_random_uuid(), 'role', 'user', 'content', 'hi')],
        array['{{"message_id": "m2", "fields": {{"name": {{"to": "Ann"}}}}}}']::jsonb[])""",
    "update_session": "select * from chatledger.update_session('s1', p_title => 'hi', p_user_id => {user})",
    "record_usage": "select * from chatledger.record_usage('s1', gen_random_uuid()::text, 1, 1, p_user_id => {user})",
    "read_session, the last": "select * from chatledger.read_session('s1', {user}, p_last => 2)",
    "read_session, what changed": """select chatledger.read_session(id, {user}, version, next_sequence)
        from chatledger_internal.session_now('s1', null)""",
    "get_messages": "select * from chatledger.get_messages('s1', {user}, p_limit => 2)",
    "get_messages after": "select * from chatledger.get_messages('s1', {user}, p_limit => 2, p_after => 2)",
    "get_messages before": "select * from chatledger.get_messages('s1', {user}, p_limit => 2, p_before => 5)",
    "create_session": "select * from chatledger.create_session('s1', 'u1')",
    "follow_session": "select * from chatledger.follow_session('s1', {user})",
    "begin_stream": "select * from chatledger.begin_stream('s1', 'host-1', p_user_id => {user}, p_force => true)",
    "renew_stream": "select chatledger.renew_stream(session_id, fence) from chatledger.active_streams",
    "list_sessions": "select * from chatledger.list_sessions('u1', 5)",
}


@pytest.mark.parametrize("user", ["null", "'u1'"])
@pytest.mark.parametrize("call", CALLS)
async def test_g12_a_plan_from_an_empty_ledger_serves_a_large_one(
    connection: Connection, connect: Connect, call: str, user: str
) -> None:
    # As in a new ledger: this database has served other tests. And nobody gathers statistics while this one runs.
    await connection.execute(
        """
        delete from pg_statistic where starelid in ('chatledger.sessions'::regclass, 'chatledger.messages'::regclass);
        alter table chatledger.sessions set (autovacuum_enabled = off);
        alter table chatledger.messages set (autovacuum_enabled = off);
        """
    )
    statement = CALLS[call].format(user=user)
    await new_session(connection, users(8))
    for _ in range(8):  # from the sixth on, a plan is kept
        await connection.execute(statement)

    other = await connect()  # what another connection does leaves the plans of this one alone
    await other.execute("select chatledger.create_session('a' || n, 'a' || n % 50) from generate_series(1, 2000) as n")
    for session_id in ("s1", "a1"):
        await append(other, users(1500, "late/"), session_id=session_id)
    assert await rows_touched(connection, statement) <= 60
