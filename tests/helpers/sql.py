"""The ledger's functions as a service in any language calls them, and a look at what is stored afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeAlias, cast

import asyncpg
import pytest

from chatledger import ChatLedger, ChatSession
from chatledger.cache.copies import CachedSession
from chatledger.cache.link import SessionCache
from chatledger.cache.read_through import read_through
from chatledger.postgres import functions
from chatledger.transfer import export_sessions
from tests.helpers.messages import call as call

Json = dict[str, Any]
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# What fixtures give.
Connect = Callable[[], Awaitable[Connection]]
ConnectAs = Callable[[str], Awaitable[Connection]]
Psql = Callable[..., Awaitable[str]]

# Messages


def user_json(message_id: str, content: Any = "hi", **more: Any) -> Json:
    return {"message_id": message_id, "role": "user", "content": content, **more}


def assistant(message_id: str, *calls: Json, **more: Any) -> Json:
    return {"message_id": message_id, "role": "assistant", "content": "hello", "tool_calls": list(calls), **more}


def tool(message_id: str, call_id: str, **more: Any) -> Json:
    return {"message_id": message_id, "role": "tool", "content": "42", "tool_call_id": call_id, **more}


def users(count: int, prefix: str = "m") -> list[Json]:
    """So many user messages: m0, m1, …"""
    return [user_json(f"{prefix}{number}") for number in range(count)]


# Calls


async def new_session(
    connection: Connection, messages: Sequence[Json] = (), session_id: str = "s1", user_id: str | None = "u1"
) -> None:
    await connection.execute("select chatledger.create_session($1, $2)", session_id, user_id)
    await append(connection, messages, session_id=session_id)


async def append(
    connection: Connection,
    messages: Sequence[Any] | None,
    *,
    session_id: str | None = "s1",
    user_id: str | None = None,
    expected_sequence: int | None = None,
    fence: int | None = None,
) -> list[asyncpg.Record]:
    return await connection.fetch(
        "select * from chatledger.append_messages($1, $2::text[]::jsonb[], $3, $4, $5)",
        session_id,
        None if messages is None else [json.dumps(message) for message in messages],
        user_id,
        expected_sequence,
        fence,
    )


async def one(connection: Connection, query: str, *arguments: Any) -> asyncpg.Record:
    """The one row of a query. Arguments that are objects go in as JSON."""
    given = [json.dumps(value) if isinstance(value, dict | list) else value for value in arguments]
    (row,) = await connection.fetch(query, *given)
    return row


async def amend(
    connection: Connection, message_id: str, patch: Any, expected_version: int | None = None, session_id: str = "s1"
) -> asyncpg.Record:
    return await one(
        connection,
        "select * from chatledger.amend_message($1, $2, $3::text::jsonb, $4)",
        session_id,
        message_id,
        json.dumps(patch),
        expected_version,
    )


async def add_call(connection: Connection, tool_call: Any, **named: Any) -> asyncpg.Record:
    return await one(
        connection,
        "select * from chatledger.add_tool_call($1, $2::text::jsonb, p_message_id => $3)",
        named.get("session_id", "s1"),
        json.dumps(tool_call),
        named.get("message_id"),
    )


async def truncate(connection: Connection, from_sequence: int, session_id: str = "s1") -> asyncpg.Record:
    return await one(connection, "select * from chatledger.truncate_session($1, $2)", session_id, from_sequence)


async def begin_stream(
    connection: Connection,
    holder: str | None = "o",
    ttl: timedelta | None = timedelta(hours=1),
    *,
    session_id: str | None = "s1",
    **more: Any,
) -> asyncpg.Record:
    return await one(
        connection,
        "select * from chatledger.begin_stream($1, $2, $3, p_stream_id => $4, p_force => $5, p_max_streams => $6)",
        session_id,
        holder,
        ttl,
        more.get("stream_id"),
        more.get("force"),
        more.get("max_streams"),
    )


async def run_out(connection: Connection, session_id: str = "s1") -> None:
    """The session's lease runs out now."""
    await connection.execute(
        "update chatledger.streams set expires_at = clock_timestamp() where session_id = $1", session_id
    )


async def updated_at(connection: Connection, session_id: str = "s1") -> datetime:
    """When the session was last changed, as readers see it."""
    return datetime.fromisoformat((await header(connection, session_id))["updated_at"])


async def header(connection: Connection, session_id: str = "s1") -> Json:
    """The session's header, as readers see it."""
    found: Json = json.loads(
        await connection.fetchval(
            "select session from chatledger.read_session($1) where session is not null", session_id
        )
    )
    del found["usage"]
    return found


# What is stored


async def bodies(connection: Connection, session_id: str = "s1") -> list[Json]:
    """The session's messages in order, as they came in, with their ids."""
    rows = await connection.fetch(
        "select m.message_id, chatledger.message_body(m) as body from chatledger.messages as m"
        " where m.session_id = $1 and not m.removed order by m.sequence",
        session_id,
    )
    return [{"message_id": row["message_id"], **json.loads(row["body"])} for row in rows]


async def places(connection: Connection, session_id: str = "s1") -> list[tuple[int, str]]:
    """Sequence and id of each message, in order."""
    rows = await connection.fetch(
        "select sequence, message_id from chatledger.messages where session_id = $1 and not removed order by sequence",
        session_id,
    )
    return [(row["sequence"], row["message_id"]) for row in rows]


async def everything(connection: Connection) -> list[str]:
    """All rows of all tables, but for who follows: to see that nothing changed."""
    tables = ("sessions", "messages", "streams", "usage_records", "added_tool_calls")
    return [
        row["row"]
        for table in tables
        for row in await connection.fetch(f"select to_jsonb(t)::text as row from chatledger.{table} as t order by 1")
    ]


class Copies:
    """A session cache that holds one copy, in memory."""

    kept: CachedSession | None = None

    async def get(self, session_id: str) -> CachedSession | None:
        return self.kept

    async def put(self, session_id: str, header: Json, blocks: dict[int, bytes]) -> None:
        self.kept = CachedSession(header, blocks)

    async def drop(self, session_id: str) -> None:
        self.kept = None


async def all_is_readable(connection: Connection) -> None:
    """Every session can be read in Python, in all ways in which it is read, and goes through JSON unchanged."""
    assert await connection.fetch("select * from chatledger.verify_session()") == []
    await connection.fetch("select * from chatledger.transcript")
    for (session_id,) in await connection.fetch("select id from chatledger.sessions where deleted_at is null"):
        session = await functions.read_session(session_id, None, None)(connection)
        assert session is not None
        assert ChatSession.model_validate_json(session.model_dump_json()) == session
        session.to_openai_messages()
        copies = Copies()
        for _ in range(2):
            assert session == await read_through(
                cast(SessionCache, copies),
                lambda call: call(connection),
                session_id,
                None,
                0,
            )
        assert copies.kept is not None
    assert all([json.loads(line) async for line in export_sessions(ChatLedger(connection))])


async def rows_touched(connection: Connection, statement: str, table: str = "%") -> int:
    """Rows that a statement read, by index or not: of this table, or of all of the ledger."""
    read = (
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_user_tables "
        "where schemaname = 'chatledger' and relname like $1"
    )
    async with connection.transaction():
        before = await connection.fetchval(read, table)
        await connection.execute(statement)
        return int(await connection.fetchval(read, table) - before)


# Refusals and locks


@contextmanager
def refused(sqlstate: str, **facts: Any) -> Iterator[pytest.ExceptionInfo[asyncpg.PostgresError]]:
    """The block fails with this SQLSTATE, a message, a hint, and a DETAIL in JSON that holds these facts."""
    with pytest.raises(asyncpg.PostgresError) as info:
        yield info
    error = said(info.value)
    assert error["sqlstate"] == sqlstate, error
    assert error["message"]
    assert error["hint"]
    assert {key: error["detail"].get(key) for key in facts} == facts


def said(error: asyncpg.PostgresError) -> Json:
    """All that a caller learns from an error of ours."""
    told: Any = error  # the stubs know only some of the fields
    return {
        "sqlstate": told.sqlstate,
        "message": told.message,
        "detail": json.loads(told.detail) if told.detail else {},
        "hint": told.hint,
    }


async def until_waiting(connection: Connection, waiting: int = 1) -> None:
    """Return when so many connections of this database wait for a lock. Not for use inside a transaction."""
    async with asyncio.timeout(30):
        while waiting > await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.005)
