"""What somebody with a login of their own could try: to run code as the owner, to find out what others have.

The traps in ``pg_temp`` are in test_catalog.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pglast
import pytest
from pglast.visitors import Visitor

from chatledger.postgres.migrations import sql_folder
from tests.helpers.catalog import LIFE, PUBLIC, READS, names
from tests.helpers.sql import assistant, begin_stream, call, everything, new_session, refused, said, tool, user_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.helpers.sql import ConnectAs, Connection

# Somebody else's session (G8), through every function that is told who asks

WHO_ASKS = {name: signature for name, signature in PUBLIC.items() if ("p_user_id", "text") in signature}
# What to pass for an argument without a default. One of a new function must be added; until then these tests fail.
VALUES = {
    "p_messages": """array['{"message_id": "new", "role": "user", "content": "x"}']::jsonb[]""",
    "p_message_id": "'m1'",
    "p_patch": """'{"content": "x"}'""",
    "p_tool_call": """'{"id": "c9", "function": {"name": "f"}}'""",
    "p_from_sequence": "1",
    "p_new_session_id": "'copy'",
    "p_usage_id": "'use1'",
    "p_prompt_tokens": "1",
    "p_completion_tokens": "2",
    "p_holder": "'worker'",
    "p_ttl": "interval '1 minute'",
    "p_fence": "(select max(fence) from chatledger.streams)",
}
# Other ways to ask, which take another path through the function.
MORE = {
    "append_messages": [
        'p_messages => array[\'{"message_id": "m0", "role": "user", "content": "hi"}\']::jsonb[]',
        'p_messages => array[\'{"message_id": "m0", "role": "user", "content": "no"}\']::jsonb[]',
        'p_messages => array[\'{"message_id": "n", "role": "user"}\']::jsonb[], p_expected_sequence => 0',
        *(f'p_messages => array[\'{{"message_id": "n", "role": "user"}}\']::jsonb[], p_fence => {n}' for n in (1, 2)),
    ],
    "amend_message": [
        "p_message_id => 'm1', p_patch => '{\"content\": 7}'",
        "p_message_id => 'm1', p_patch => '{\"content\": \"x\"}', p_fence => 1",
    ],
    "begin_stream": [f"p_holder => 'worker', {more}" for more in ("p_force => true", "p_max_streams => 1")],
    "follow_session": ["p_echo => true"],
    "add_tool_call": ['p_tool_call => \'{"id": "c1", "function": {"name": "search"}}\''],
    "get_messages": ["p_after => 0", "p_after => -1, p_limit => 1", "p_before => 2, p_limit => 1", "p_before => 0"],
    "read_session": ["p_since_version => 1, p_since_sequence => 1", "p_last => 1"],
    "fork_session": ["p_new_session_id => 'copy', p_at_sequence => 0", "p_new_session_id => 'fork'"],
    "truncate_session": [
        "p_from_sequence => 0, p_expected_sequence => 3",
        "p_from_sequence => 0, p_fence => 1",
    ],
    "save_session": ['p_read_version => 2, p_header => \'{"title": {"from": "Mine", "to": "Yours"}}\''],
    "record_usage": ["p_usage_id => 'use1', p_prompt_tokens => 9, p_completion_tokens => 9"],
    "update_session": ["p_title => 'Stolen'", "p_pinned => true", "p_metadata => '{\"a\": 1}'"],
    "list_sessions": ["p_title => 'Mine'", "p_status => 'active'", "p_cursor => 't/99999999999999999/s9'"],
}


def required(function: str) -> list[str]:
    """The arguments without a default."""
    create: Any = pglast.parse_sql((sql_folder() / "functions" / f"{function}.sql").read_text("utf-8"))[0].stmt
    optional = {parameter.name for parameter in create.parameters if parameter.defexpr}
    return [name for name, _ in PUBLIC[function] if name not in {*optional, "p_session_id", "p_user_id"}]


def ways() -> list[Any]:
    found = []
    for function in WHO_ASKS:
        least = ", ".join(f"{name} => {VALUES[name]}" for name in required(function))
        for arguments in [least, *MORE.get(function, [])]:
            found.append(pytest.param(function, arguments, id=f"{function} {arguments[:50]}"))
    return found


async def answer(connection: Connection, function: str, arguments: str, session_id: str, user_id: str) -> Any:
    """What a call tells who asks: its rows, or its error; with a stand-in for the session's id."""
    takes_session = ("p_session_id", "text") in PUBLIC[function]
    passed = f"p_session_id => '{session_id}', " * takes_session + f"p_user_id => '{user_id}'" + ", " * bool(arguments)
    try:
        async with connection.transaction():
            told: Any = [
                dict(row) for row in await connection.fetch(f"select * from chatledger.{function}({passed}{arguments})")
            ]
    except asyncpg.PostgresError as error:
        told = said(error)
    text = json.dumps(told, default=str).replace(session_id, "<session>")
    # A session that is created in the end has times of its own.
    return re.sub(r"\d{4}-\d\d-\d\d[ T][^\"]*", "<time>", text)


@pytest.mark.parametrize(("function", "arguments"), ways())
async def test_g8_a_stranger_learns_nothing_and_changes_nothing(
    connection: Connection, connect_as: ConnectAs, function: str, arguments: str
) -> None:
    await new_session(
        connection, [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1")], session_id="id-of-theirs"
    )
    await connection.execute("select chatledger.update_session('id-of-theirs', p_title => 'Mine')")
    await connection.execute("select chatledger.record_usage('id-of-theirs', 'use1', 1, 2)")
    await connection.execute("select chatledger.fork_session('id-of-theirs', 'fork')")
    await begin_stream(connection, "somebody", session_id="id-of-theirs")
    await new_session(connection, session_id="id-of-nobodys", user_id=None)
    await new_session(connection, session_id="id-of-deleted", user_id="u2")
    await connection.execute("select chatledger.delete_session('id-of-deleted')")
    before = await everything(connection)
    writer = await connect_as("chatledger_writer")

    answers = {
        session_id: await answer(writer, function, arguments, session_id, "u2")
        for session_id in ("id-of-theirs", "id-of-nobodys", "id-of-deleted")
    }
    assert await everything(connection) == before
    creates = function == "create_session" or (function == "save_session" and "p_read_version" not in arguments)
    if not creates:  # else the id is taken, which cannot be hidden
        answers["id-of-missing"] = await answer(writer, function, arguments, "id-of-missing", "u2")
        assert await everything(connection) == before
    assert len(set(answers.values())) == 1, answers
    assert "Mine" not in str(answers)
    # The owner is told something else.
    assert await answer(writer, function, arguments, "id-of-theirs", "u1") != answers["id-of-theirs"]


async def test_g8_a_cursor_of_anothers_list_gives_ones_own_sessions(connection: Connection) -> None:
    for number in range(4):
        await new_session(connection, session_id=f"s{number}", user_id=f"u{number % 2}")
    rows = await connection.fetch("select session_id, cursor from chatledger.list_sessions(null)")
    for row in rows:
        seen = await connection.fetch(
            "select user_id from chatledger.list_sessions('u1', p_cursor => $1)", row["cursor"]
        )
        assert {page["user_id"] for page in seen} <= {"u1"}


async def test_g8_a_fork_of_the_session_that_had_this_id_before_is_not_shown(connection: Connection) -> None:
    """Purged and created anew by somebody else, who could ask for the fork again."""
    await new_session(connection, [user_json("m0")], session_id="id", user_id="u1")
    await connection.execute("select chatledger.fork_session('id', 'secret plan', p_title => 'Secret')")
    await connection.execute("delete from chatledger.sessions where id = 'id'")  # as purge_sessions does
    await new_session(connection, session_id="id", user_id="u2")
    with refused("CL010", session_id="secret plan"):
        await connection.execute("select chatledger.fork_session('id', 'secret plan', p_user_id => 'u2')")


# Names of the caller's that are like ours, or like Postgres's and a better match


@pytest.fixture
async def public_is_open(connection: Connection) -> AsyncIterator[None]:
    """Everybody may create in ``public``, as before Postgres 15; what comes into it is dropped."""
    await connection.execute("grant create on schema public to public; create table public.caught (as_whom text)")
    yield
    await connection.execute("drop schema public cascade; create schema public; grant usage on schema public to public")


# Found by a search_path with public in it, since their arguments match better than those of Postgres's own.
LOOKALIKES = """
create function public.trap() returns boolean language plpgsql as $$
begin
    insert into public.caught values (current_user);
    return true;
exception when insufficient_privilege then
    return true;
end $$;
create function public.to_jsonb(text) returns jsonb language sql
    as 'select case when public.trap() then ''7''::jsonb end';
create function public.to_jsonb(integer) returns jsonb language sql
    as 'select case when public.trap() then ''7''::jsonb end';
create function public.trapped(jsonb, text, jsonb) returns jsonb language sql
    as 'select case when public.trap() then $1 end';
create aggregate public.jsonb_object_agg(text, jsonb) (sfunc = public.trapped, stype = jsonb, initcond = '{}');
create function public.format(text, text) returns text language sql
    as 'select case when public.trap() then ''x'' end';
create function public.format(text, text, text) returns text language sql
    as 'select case when public.trap() then ''x'' end';
create function public.jsonb_build_object(text, text) returns jsonb language sql
    as 'select case when public.trap() then ''{}''::jsonb end';
create function public.jsonb_build_array(jsonb) returns jsonb language sql
    as 'select case when public.trap() then ''[]''::jsonb end';
create function public.concat(text, text) returns text language sql
    as 'select case when public.trap() then ''x'' end';
create function public.array_agg(jsonb) returns jsonb[] language sql
    as 'select case when public.trap() then null::jsonb[] end';
create function public.append_messages(text, jsonb[]) returns text language sql
    as 'select public.trap()::text';
create function public.lock_session(text, text) returns text language sql
    as 'select public.trap()::text';
create function public.update_session(text) returns text language sql
    as 'select public.trap()::text';
create function public.joined(text, integer) returns text language sql
    as 'select case when public.trap() then $1 end';
create operator public.|| (leftarg = text, rightarg = integer, function = public.joined);
create function public.joined(text, bigint) returns text language sql
    as 'select case when public.trap() then $1 end';
create operator public.|| (leftarg = text, rightarg = bigint, function = public.joined);
create function public.joined(text, jsonb) returns text language sql
    as 'select case when public.trap() then $1 end';
create operator public.|| (leftarg = text, rightarg = jsonb, function = public.joined);
create function public.joined(text, boolean) returns text language sql
    as 'select case when public.trap() then $1 end';
create operator public.|| (leftarg = text, rightarg = boolean, function = public.joined);
create function public.same(text, text) returns boolean language sql
    as 'select public.trap()';
create operator public.= (leftarg = text, rightarg = text, function = public.same);
create type public.id as (id text);
create function public.text_of(public.id) returns text language sql
    as 'select case when public.trap() then ($1).id end';
create cast (public.id as text) with function public.text_of(public.id) as implicit;
"""


async def test_functions_operators_and_casts_of_the_callers_do_not_run_as_the_owner(
    connection: Connection, connect_as: ConnectAs, public_is_open: None
) -> None:
    writer = await connect_as("chatledger_writer")
    await writer.execute(LOOKALIKES)
    for search_path in ("public, pg_catalog", "public, chatledger, pg_catalog", "pg_catalog, public"):
        await writer.execute(f"set search_path = {search_path}")
        for statement in [*LIFE[:-2], *READS, *LIFE[-2:]]:
            await writer.execute(statement)
        # A type of the caller's with a cast of the caller's, where a text is expected.
        await writer.execute("select chatledger.delete_session(row('s2')::public.id)")
        await connection.execute("truncate chatledger.sessions cascade")
    assert await names(connection, "select as_whom from public.caught") == []


async def test_an_operator_who_reads_is_not_led_to_functions_of_a_writers(
    connection: Connection, connect_as: ConnectAs, public_is_open: None
) -> None:
    """The owner, or a superuser, in psql: what they call runs as they."""
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1"))])
    await (await connect_as("chatledger_writer")).execute(LOOKALIKES)
    for search_path in ('"$user", public', "chatledger, public"):
        await connection.execute(f"set search_path = {search_path}")
        for read in READS:
            await connection.execute(read)
    assert await names(connection, "select as_whom from public.caught") == []


async def test_the_lookalikes_do_catch_a_function_that_does_not_qualify(
    connection: Connection, connect_as: ConnectAs, public_is_open: None
) -> None:
    """Else the tests above could not fail."""
    await (await connect_as("chatledger_writer")).execute(LOOKALIKES)
    for careless in ("to_jsonb('x'::text)", "'x'::text || 1"):
        await connection.execute(f"select {careless}")
        assert await names(connection, "delete from public.caught returning as_whom") == ["chatledger"]
    await connection.execute("set search_path = public, pg_catalog; select 'x'::text = 'y'")
    assert await names(connection, "select as_whom from public.caught") == ["chatledger"]


PATHS = sorted((sql_folder() / "functions").glob("*.sql"))


@pytest.mark.parametrize("path", [path for path in PATHS if path.stem in PUBLIC], ids=lambda path: str(path.stem))
def test_a_public_function_pins_its_search_path_or_qualifies_what_it_calls(path: Path) -> None:
    text = path.read_text("utf-8")
    if "set search_path = pg_catalog, pg_temp" in text:
        return
    calls: list[str] = []

    class Calls(Visitor):
        def visit_FuncCall(self, ancestors: Any, node: Any) -> None:
            calls.append(".".join(part.sval for part in node.funcname))

    Calls()(pglast.parse_sql(text.split("$function$")[1]))
    assert [name for name in calls if not name.startswith(("pg_catalog.", "chatledger."))] == []


async def test_an_overload_in_our_schema_is_not_the_callers_to_make(
    connection: Connection, connect_as: ConnectAs
) -> None:
    for role in ("chatledger_reader", "chatledger_writer", "chatledger_admin"):
        member = await connect_as(role)
        for statement in (
            "create function chatledger_internal.lock_session(text) returns int language sql as 'select 1'",
            "create or replace function chatledger.version() returns text language sql as $$ select 'x' $$",
            "alter function chatledger.version() security definer",
            "create table chatledger.mine (id int)",
            "create type chatledger.mine as (id int)",
            "set role chatledger",
        ):
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidFunctionDefinitionError)):
                await member.execute(statement)
