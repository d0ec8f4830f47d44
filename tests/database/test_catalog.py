"""What the catalog and the files say: who may do what, and that every function keeps the rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pglast
import pytest

from chatledger.postgres.migrations import sql_folder
from tests.helpers.catalog import LIFE, PUBLIC, READS, VIEWS, names
from tests.helpers.sql import everything, new_session, refused, users

if TYPE_CHECKING:
    from tests.helpers.sql import ConnectAs, Connection, Psql

PUBLIC_FILES = sorted((sql_folder() / "functions").glob("*.sql"))
INTERNAL_FILES = sorted((sql_folder() / "functions/internal").glob("*.sql"))
FILES = PUBLIC_FILES + INTERNAL_FILES
VIEW_FILES = sorted((sql_folder() / "views").glob("*.sql"))
TABLES = ["sessions", "messages", "streams", "user_locks", "watches", "usage_records", "added_tool_calls", "migrations"]
READING = {
    "follow_session",
    "get_messages",
    "list_sessions",
    "message_body",
    "read_session",
    "status",
    "verify_session",
    "version",
}
WRITING = {
    "add_tool_call",
    "amend_message",
    "append_messages",
    "begin_stream",
    "create_session",
    "delete_session",
    "end_stream",
    "fork_session",
    "record_usage",
    "renew_stream",
    "save_session",
    "truncate_session",
    "update_session",
}
MAY_CALL = {
    "chatledger_reader": READING,
    "chatledger_writer": READING | WRITING,
    "chatledger_admin": READING | WRITING | {"purge_sessions"},
    "public": set(),
}

IN_SCHEMA = "pronamespace = 'chatledger'::regnamespace"
INTERNAL = "pronamespace = 'chatledger_internal'::regnamespace"


# Who may do what


@pytest.mark.parametrize("role", MAY_CALL)
async def test_role_may_call_exactly_its_functions(connection: Connection, role: str) -> None:
    found = await names(
        connection,
        f"select proname from pg_proc where {IN_SCHEMA} and has_function_privilege($1, oid, 'execute')",
        role,
    )
    assert sorted(found) == sorted(MAY_CALL[role])


async def test_nobody_may_call_an_internal_function(connection: Connection) -> None:
    for role in MAY_CALL:
        assert not await connection.fetchval(
            "select has_schema_privilege($1, 'chatledger_internal', 'usage, create')", role
        )


async def test_what_a_reader_may_call_cannot_write(connection: Connection) -> None:
    """Postgres itself refuses a write in a function that is not volatile."""
    found = await names(
        connection,
        f"select proname from pg_proc where {IN_SCHEMA} and provolatile = 'v' "
        "and has_function_privilege('chatledger_reader', oid, 'execute')",
    )
    assert found == ["follow_session"]  # which writes until when somebody follows, and nothing else


async def test_privileges_are_the_owners_and_the_three_roles(connection: Connection) -> None:
    rows = await connection.fetch(
        """
        select distinct nullif(acl.grantee, 0)::regrole::text as grantee, acl.is_grantable and acl.grantee <> o.owner
            as passes_on
        from (
            select proacl as acl, proowner as owner from pg_proc where pronamespace = 'chatledger'::regnamespace
            union all
            select relacl, relowner from pg_class where relnamespace = 'chatledger'::regnamespace
            union all
            select attacl, relowner from pg_attribute join pg_class on pg_class.oid = attrelid
                where relnamespace = 'chatledger'::regnamespace
            union all
            select nspacl, nspowner from pg_namespace where nspname in ('chatledger', 'chatledger_internal')
        ) as o
        cross join lateral aclexplode(o.acl) as acl
        """
    )
    assert {row["grantee"] for row in rows} == {
        "chatledger",
        "chatledger_admin",
        "chatledger_reader",
        "chatledger_writer",
    }
    assert not any(row["passes_on"] for row in rows)


async def test_public_may_call_nothing(connection: Connection) -> None:
    found = await names(
        connection,
        f"select proname from pg_proc where {IN_SCHEMA} and has_function_privilege('public', oid, 'execute')",
    )
    assert found == []


async def test_public_may_not_even_name_what_is_in_the_schema(connection: Connection) -> None:
    assert not await connection.fetchval("select has_schema_privilege('public', 'chatledger', 'usage, create')")


async def test_public_may_read_no_table_and_no_view(connection: Connection) -> None:
    found = await names(
        connection,
        "select relname from pg_class where relnamespace = 'chatledger'::regnamespace and relkind in ('r', 'v') "
        "and has_table_privilege('public', oid, 'select, insert, update, delete, truncate, references, trigger')",
    )
    assert found == []


@pytest.mark.parametrize("role", ["chatledger_reader", "chatledger_writer", "chatledger_admin"])
async def test_no_role_may_write_to_a_table(connection: Connection, role: str) -> None:
    found = await names(
        connection,
        "select relname from pg_class where relnamespace = 'chatledger'::regnamespace and relkind in ('r', 'v') "
        "and has_table_privilege($1, oid, 'insert, update, delete, truncate, references, trigger')",
        role,
    )
    assert found == []
    assert not await connection.fetchval("select has_schema_privilege($1, 'chatledger', 'create')", role)


@pytest.mark.parametrize("role", ["chatledger_reader", "chatledger_writer", "chatledger_admin"])
async def test_every_role_may_read_every_view(connection: Connection, role: str) -> None:
    found = await names(
        connection,
        "select relname from pg_class where relnamespace = 'chatledger'::regnamespace and relkind = 'v' "
        "and has_table_privilege($1, oid, 'select')",
        role,
    )
    assert {*found} == VIEWS


async def test_roles_cannot_log_in_and_have_no_powers(connection: Connection) -> None:
    found = await names(
        connection,
        "select rolname from pg_roles where rolname = any ($1) "
        "and not (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)",
        ["chatledger_admin", "chatledger_reader", "chatledger_writer"],
    )
    assert len(found) == 3


async def test_reader_and_writer_are_siblings(connection: Connection) -> None:
    for one, other in (("chatledger_reader", "chatledger_writer"), ("chatledger_writer", "chatledger_reader")):
        assert not await connection.fetchval("select pg_has_role($1, $2, 'member')", one, other)
        assert await connection.fetchval("select pg_has_role('chatledger_admin', $1, 'member')", one)


# What that comes to, for login roles that are members and nothing else

BAD_READS = [
    ("CL001", "select * from chatledger.get_messages('unknown')"),
    ("CL008", "select * from chatledger.get_messages('')"),
    ("CL008", "select * from chatledger.get_messages('s1', p_limit => 0)"),
    ("CL008", "select * from chatledger.read_session('s1', p_last => 0)"),
    ("CL008", "select * from chatledger.read_session('s1', null, 1, null)"),
    ("CL008", "select * from chatledger.read_session('s1', p_limit => 0)"),
    ("CL001", "select * from chatledger.follow_session('unknown')"),
    ("CL008", "select * from chatledger.follow_session('s1', p_ttl => '0')"),
    ("CL008", "select * from chatledger.list_sessions('u1', 0)"),
    ("CL008", "select * from chatledger.list_sessions('u1', p_cursor => 'x')"),
    ("CL001", "select * from chatledger.verify_session('unknown')"),
]


async def test_writer_can_run_the_whole_life_of_a_session(connection: Connection, connect_as: ConnectAs) -> None:
    writer = await connect_as("chatledger_writer")
    for statement in LIFE:
        await writer.execute(statement)
    assert len(await everything(connection)) == 3  # the deleted one, its fork and the fork's message


@pytest.mark.parametrize("role", ["chatledger_reader", "chatledger_writer", "chatledger_admin"])
@pytest.mark.parametrize("read", READS)
async def test_every_role_can_read(connection: Connection, connect_as: ConnectAs, role: str, read: str) -> None:
    await new_session(connection, users(2))
    await (await connect_as(role)).execute(read)


@pytest.mark.parametrize("role", ["chatledger_reader", "chatledger_writer", "chatledger_admin"])
@pytest.mark.parametrize(("sqlstate", "read"), BAD_READS)
async def test_g10_every_role_gets_the_ledgers_own_refusals(
    connection: Connection, connect_as: ConnectAs, role: str, sqlstate: str, read: str
) -> None:
    await new_session(connection, users(2))
    reader = await connect_as(role)
    with refused(sqlstate):
        await reader.execute(read)


@pytest.mark.parametrize("write", [*LIFE, "select chatledger.purge_sessions('0')"])
async def test_reader_cannot_write(connection: Connection, connect_as: ConnectAs, write: str) -> None:
    await new_session(connection, users(2))
    reader = await connect_as("chatledger_reader")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.execute(write)


async def test_purging_is_for_the_admin(connection: Connection, connect_as: ConnectAs) -> None:
    await new_session(connection)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await (await connect_as("chatledger_writer")).execute("select chatledger.purge_sessions('0')")
    assert await (await connect_as("chatledger_admin")).fetchval("select chatledger.purge_sessions('0')") == 1


@pytest.mark.parametrize("role", ["chatledger_reader", "chatledger_writer", "chatledger_admin"])
@pytest.mark.parametrize("table", TABLES)
async def test_nobody_can_touch_the_tables(
    connection: Connection, connect_as: ConnectAs, role: str, table: str
) -> None:
    column = await connection.fetchval(
        "select attname from pg_attribute where attrelid = $1::text::regclass and attnum = 1", f"chatledger.{table}"
    )
    member = await connect_as(role)
    for statement in (
        f"insert into chatledger.{table} default values",
        f"update chatledger.{table} set {column} = {column}",
        f"delete from chatledger.{table}",
        f"truncate chatledger.{table} cascade",
        f"alter table chatledger.{table} add column more text",
        f"select from chatledger.{table} for key share",
        f"do $$ begin lock table chatledger.{table} in row share mode; end $$",
        f"create trigger t before insert on chatledger.{table} execute function chatledger.version()",
        f"drop table chatledger.{table}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await member.execute(statement)


async def test_role_without_membership_gets_nothing(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("create role bystander; set local role bystander")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute("select chatledger.version()")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute("select from chatledger.sessions")
        await connection.execute("reset role; drop role bystander")


# Definer functions


async def test_every_definer_function_pins_its_search_path(connection: Connection) -> None:
    rows = await connection.fetch(f"select proname, proconfig from pg_proc where {IN_SCHEMA} and prosecdef")
    assert {(row["proconfig"] or [""])[0] for row in rows} == {"search_path=pg_catalog, pg_temp"}


async def test_every_function_that_writes_for_the_caller_is_a_definer(connection: Connection) -> None:
    found = await names(connection, f"select proname from pg_proc where {IN_SCHEMA} and prosecdef")
    assert WRITING | {"purge_sessions"} <= {*found}


async def test_no_internal_function_is_a_definer(connection: Connection) -> None:
    assert await names(connection, f"select proname from pg_proc where {INTERNAL} and prosecdef") == []


# Types of this session that run a trap when something is cast to them, tables like ours, functions and an operator like
# those that ours use. The trap gets something into the table only when it runs as the owner.
TRAPS = """
create function pg_temp.trap() returns pg_catalog.bool language plpgsql as $$
begin
    insert into public.caught values (current_user);
    return true;
exception when insufficient_privilege then
    return true;
end $$;
create temp table sessions (like chatledger.sessions);
create temp table messages (like chatledger.messages);
create temp table streams (like chatledger.streams);
create temp table user_locks (like chatledger.user_locks);
create temp table watches (like chatledger.watches);
create temp table usage_records (like chatledger.usage_records);
create temp table added_tool_calls (like chatledger.added_tool_calls);
create function pg_temp.cardinality(pg_catalog.anyarray) returns pg_catalog.int4 language sql
    as 'select case when pg_temp.trap() then 0 end';
create function pg_temp.jsonb_typeof(pg_catalog.jsonb) returns pg_catalog.text language sql
    as 'select case when pg_temp.trap() then ''object'' end';
create function pg_temp.clock_timestamp() returns pg_catalog.timestamptz language sql
    as 'select case when pg_temp.trap() then pg_catalog.now() end';
create function pg_temp.char_length(pg_catalog.text) returns pg_catalog.int4 language sql
    as 'select case when pg_temp.trap() then 1 end';
create function pg_temp.same(pg_catalog.text, pg_catalog.text) returns pg_catalog.bool language sql
    as 'select pg_temp.trap()';
create operator pg_temp.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = pg_temp.same);
create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.trap());
create domain pg_temp.timestamptz as pg_catalog.timestamptz check (pg_temp.trap());
create domain pg_temp.text as pg_catalog.text check (pg_temp.trap());
"""


async def test_types_tables_and_functions_of_the_callers_session_are_not_used_by_definer_functions(
    connection: Connection, psql: Psql
) -> None:
    await connection.execute("create table public.caught (as_whom pg_catalog.text)")
    try:
        before_the_end = LIFE.index("select chatledger.truncate_session('s1', 0)")
        statements = [*LIFE[:before_the_end], *READS, *LIFE[before_the_end:]]
        life = "".join(f"{statement};\n" for statement in statements).replace("::jsonb[]", "::pg_catalog.jsonb[]")
        counts = " + ".join(f"(select count(*) from pg_temp.{table})" for table in TABLES[:-1])
        output = await psql(f"set role chatledger_writer; {TRAPS} {life} select 'diverted:', {counts}")

        assert "diverted:|0" in output
        assert await connection.fetch("select * from public.caught") == []
        assert len(await everything(connection)) == 3
    finally:
        await connection.execute("drop table public.caught")


async def test_the_traps_do_catch_a_definer_function_with_an_empty_search_path(
    connection: Connection, psql: Psql
) -> None:
    """Else the test above could not fail."""
    await connection.execute("create table public.caught (as_whom pg_catalog.text)")
    try:
        await connection.execute(
            "create function public.careless() returns text language plpgsql security definer set search_path = '' "
            "as $$ begin return 1::text; end $$"
        )
        await psql(f"set role chatledger_writer; {TRAPS} select public.careless();")
        assert await names(connection, "select distinct as_whom from public.caught") == ["chatledger"]
    finally:
        await connection.execute("drop table public.caught; drop function if exists public.careless()")


# Names, comments, keys


async def test_every_function_table_view_and_type_has_a_comment(connection: Connection) -> None:
    found = await names(
        connection,
        f"""
        select proname from pg_proc where ({IN_SCHEMA} or {INTERNAL}) and obj_description(oid, 'pg_proc') is null
        union all
        select relname from pg_class where relnamespace = 'chatledger'::regnamespace and relkind in ('r', 'v', 'c')
            and coalesce(obj_description(oid, 'pg_class'), obj_description(reltype, 'pg_type')) is null
        union all
        select 'the schema' where obj_description('chatledger'::regnamespace, 'pg_namespace') is null
        """,
    )
    assert found == []


async def test_every_key_starts_with_the_session(connection: Connection) -> None:
    """So that the tables can be distributed by it."""
    rows = await connection.fetch(
        """
        select c.relname as table, a.attname as starts_with
        from pg_index as i
        join pg_class as c on c.oid = i.indrelid and c.relnamespace = 'chatledger'::regnamespace
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indisunique
        """
    )
    starts = {(row["table"], row["starts_with"]) for row in rows}
    assert starts == {
        ("migrations", "number"),
        ("sessions", "id"),
        ("messages", "session_id"),
        ("streams", "session_id"),
        ("watches", "session_id"),
        ("user_locks", "user_id"),
        ("usage_records", "session_id"),
        ("added_tool_calls", "session_id"),
    }
    assert len([row for row in rows if row["table"] == "messages"]) == 2


async def test_no_index_has_a_column_that_every_append_changes(connection: Connection) -> None:
    """It would end HOT updates of the sessions."""
    found = await names(
        connection,
        "select distinct attname from pg_index join pg_attribute on attrelid = indrelid and attnum = any (indkey) "
        "where indrelid = 'chatledger.sessions'::regclass order by 1",
    )
    assert found == ["active_hour", "id", "pinned", "user_id"]


async def test_arguments_are_named_and_no_function_is_overloaded(connection: Connection) -> None:
    rows = await connection.fetch(
        f"select proname, proargnames[1:pronargs] as arguments, pronargs from pg_proc where {IN_SCHEMA} or {INTERNAL}"
    )
    assert len({row["proname"] for row in rows}) == len(rows)
    for row in rows:
        assert all(argument.startswith("p_") for argument in row["arguments"] or [])
        assert len(row["arguments"] or []) == row["pronargs"], row["proname"]


async def test_leading_arguments_are_the_contracts(connection: Connection) -> None:
    rows = await connection.fetch(
        f"select proname, pg_get_function_arguments(oid) as arguments from pg_proc where {IN_SCHEMA}"
    )
    arguments = {row["proname"]: row["arguments"] for row in rows}
    for name, leading in {
        "begin_stream": "p_session_id text, p_holder text, p_ttl interval",
        "renew_stream": "p_session_id text",
        "end_stream": "p_session_id text",
        "append_messages": "p_session_id text, p_messages jsonb[], p_user_id text DEFAULT NULL::text, "
        "p_expected_sequence integer DEFAULT NULL::integer, p_fence bigint DEFAULT NULL::bigint",
        "create_session": "p_session_id text, p_user_id text",
        "amend_message": "p_session_id text, p_message_id text, p_patch jsonb, "
        "p_expected_version bigint DEFAULT NULL::bigint",
        "add_tool_call": "p_session_id text, p_tool_call jsonb",
        "follow_session": "p_session_id text, p_user_id text",
        "read_session": "p_session_id text, p_user_id text DEFAULT NULL::text, "
        "p_since_version bigint DEFAULT NULL::bigint",
        "get_messages": "p_session_id text, p_user_id text",
        "list_sessions": "p_user_id text",
        "update_session": "p_session_id text",
        "delete_session": "p_session_id text",
        "truncate_session": "p_session_id text, p_from_sequence integer",
        "fork_session": "p_session_id text",
        "record_usage": "p_session_id text",
        "save_session": "p_session_id text",
        "verify_session": "p_session_id text",
    }.items():
        assert arguments[name].startswith(leading), arguments[name]


# Files


def test_there_are_files() -> None:
    assert {"append_messages", "read_session"} < {path.stem for path in FILES}
    assert {path.stem for path in VIEW_FILES} == VIEWS


async def test_a_file_for_each_function_and_a_function_for_each_file(connection: Connection) -> None:
    for schema, files in ((IN_SCHEMA, PUBLIC_FILES), (INTERNAL, INTERNAL_FILES)):
        found = await names(connection, f"select proname from pg_proc where {schema}")
        assert sorted(found) == [path.stem for path in files]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_holds_one_function_its_grants_and_its_comment(path: Path) -> None:
    statements: list[Any] = [raw.stmt for raw in pglast.parse_sql(path.read_text("utf-8"))]
    first, *others = statements

    assert isinstance(first, pglast.ast.CreateFunctionStmt)
    schema = "chatledger" if path in PUBLIC_FILES else "chatledger_internal"
    assert [part.sval for part in first.funcname or ()] == [schema, path.stem]
    assert first.replace
    if path in INTERNAL_FILES:  # in a schema that nobody may use
        assert [type(other) for other in others] == [pglast.ast.CommentStmt]
        return
    assert {type(other) for other in others} == {pglast.ast.GrantStmt, pglast.ast.CommentStmt}
    assert not others[0].is_grant  # first of all: revoked from public


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_begins_with_its_contract(path: Path) -> None:
    assert re.match(rf"-- {path.stem}\(.*\)(\n--)? +-> ", path.read_text("utf-8"))


def contract(path: Path) -> dict[str, str]:
    """The lines of a file's contract that begin with a word of their own, in order."""
    comment = re.match(r"(--.*\n)*", path.read_text("utf-8"))
    assert comment
    joined = re.sub(r"\n--  +", " ", comment[0])
    return dict(re.findall(r"^-- (Returns|Idempotent|Locks|Writes|Raises|Example): +(.*)$", joined, re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_contract_has_its_lines_in_one_order(path: Path) -> None:
    order = ["Returns", "Idempotent", "Locks", "Writes", "Raises", "Example"]
    given = contract(path)
    assert [*given] == [name for name in order if name in given]
    if path in PUBLIC_FILES:
        assert {"Locks", "Writes", "Raises", "Example"} <= given.keys()
        arguments = {name for name, _ in PUBLIC[path.stem]}
        told = set(re.findall(r"\bp_\w+", path.read_text("utf-8").split("create or replace")[0].split("->", 1)[1]))
        assert arguments <= told | ({"p_message"} if path.stem == "message_body" else set())


async def test_contract_says_which_tables_are_written(connection: Connection) -> None:
    """Each call of a session's life writes what its file says, and all of it is written by some call."""
    written: dict[str, set[str]] = {}
    end = LIFE.index("select chatledger.truncate_session('s1', 0)")
    age = "update chatledger.sessions set updated_at = now() - interval '1 day'"
    life = [*LIFE[:end], *READS, *LIFE[end:], age, "select chatledger.purge_sessions('0')"]
    count = "select relname, n_tup_ins + n_tup_upd + n_tup_del as rows from pg_stat_xact_user_tables"
    for statement in life:
        async with connection.transaction():
            before = {row["relname"]: row["rows"] for row in await connection.fetch(count)}
            await connection.execute(statement)
            after = {row["relname"]: row["rows"] for row in await connection.fetch(count)}
        if called := re.search(r"chatledger\.(\w+)\(", statement):
            tables = {table for table, rows in after.items() if rows > before.get(table, 0)}
            written.setdefault(called[1], set()).update(tables)
    for path in PUBLIC_FILES:
        told = set(re.findall(rf"\b(?:{'|'.join(TABLES)})\b", contract(path)["Writes"]))
        assert written[path.stem] <= told, path.stem
    assert set().union(*written.values()) == {*TABLES} - {"migrations"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_body_passes_the_parser(path: Path) -> None:
    create = pglast.split(path.read_text("utf-8"))[0]
    if "language plpgsql" in create:
        pglast.parse_plpgsql(
            create.replace("chatledger.", "").replace("chatledger_internal.", "")
        )  # the parser knows no schemas of others
    else:
        assert pglast.parse_sql(create.split("$function$")[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_body_has_no_dynamic_sql_no_subtransaction_and_no_star(path: Path) -> None:
    body = re.sub("--.*", "", path.read_text("utf-8").split("$function$")[1])
    assert not re.search(r"\bexecute\b|\bexception\s+when\b|select\s+\*", body)


def test_the_parser_finds_a_mistake_in_a_body() -> None:
    with pytest.raises(pglast.parser.ParseError):
        pglast.parse_plpgsql("create function f() returns void language plpgsql as $$ begin selec 1; end $$")
