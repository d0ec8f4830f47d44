"""The SQL functions, as Python calls: the one module that knows their names and arguments.

Arrays and objects go out as text that Postgres casts, and come back as text or decoded: so a connection or pool of the
caller's works whatever JSON codec was set on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from chatledger.models.bodies import body_as_appended
from chatledger.models.header import SessionHeader, SessionPage, Usage
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import AmendReceipt, AppendReceipt, IntegrityProblem, ToolCallReceipt, TruncateReceipt
from chatledger.models.saves import Outcome, SaveArguments
from chatledger.models.session import ChatSession
from chatledger.postgres.encoding import encode_object
from chatledger.postgres.rows import (
    COLUMNS,
    Changes,
    bodies_of,
    changes_of,
    header_of,
    message_rows,
    messages_of,
    session_of,
)

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_USAGE_ARGUMENTS = {"usage_id", "prompt_tokens", "completion_tokens", "total_tokens"}
_READ = f"select {', '.join(COLUMNS)}, removed, session from chatledger.read_session"


async def create_session(
    connection: Connection,
    session_id: str,
    user_id: str | None,
    title: str | None,
    metadata: str | None,
    status: str,
) -> SessionHeader:
    row = await _row(
        connection,
        "select * from chatledger.create_session($1, $2, $3, $4::text::jsonb, $5)",
        session_id,
        user_id,
        title,
        metadata,
        status,
    )
    return header_of(row)


async def append_messages(
    connection: Connection,
    session_id: str,
    messages: Sequence[str],
    user_id: str | None,
    expected_sequence: int | None,
    fence: int | None,
) -> list[AppendReceipt]:
    rows = await connection.fetch(
        "select * from chatledger.append_messages($1, $2::text[]::jsonb[], $3, $4, $5)",
        session_id,
        messages,
        user_id,
        expected_sequence,
        fence,
    )
    return [AppendReceipt(*row) for row in rows]


async def amend_message(
    connection: Connection,
    session_id: str,
    message_id: str,
    patch: str,
    expected_version: int | None,
    user_id: str | None,
    fence: int | None,
) -> AmendReceipt:
    row = await _row(
        connection,
        "select * from chatledger.amend_message($1, $2, $3::text::jsonb, $4, $5, $6)",
        session_id,
        message_id,
        patch,
        expected_version,
        user_id,
        fence,
    )
    return AmendReceipt(*row)


async def add_tool_call(
    connection: Connection,
    session_id: str,
    tool_call: str,
    user_id: str | None,
    message_id: str,
    fence: int | None,
) -> ToolCallReceipt:
    row = await _row(
        connection,
        "select * from chatledger.add_tool_call($1, $2::text::jsonb, $3, $4, $5)",
        session_id,
        tool_call,
        user_id,
        message_id,
        fence,
    )
    return ToolCallReceipt(*row)


async def read_session(
    connection: Connection, session_id: str, user_id: str | None, last: int | None
) -> ChatSession | None:
    rows = await connection.fetch(f"{_READ}($1, $2, null, null, $3)", session_id, user_id, last)
    if not rows:
        return None
    session = rows[0]["session"]
    return session_of(session, message_rows(session, rows[1:]))


async def read_changes(
    connection: Connection,
    session_id: str,
    user_id: str | None,
    since: tuple[int | None, int] | None,
    limit: int | None = None,
) -> Changes | None:
    """Read what changed since a version and next_sequence; None when the session is missing or not this user's.

    With a limit, only the first so many of the new messages. Since no version but a sequence: only the messages from
    there on.
    """
    rows = await connection.fetch(
        f"{_READ}($1, $2, $3, $4, null, $5)",
        session_id,
        user_id,
        *(since or (None, None)),
        limit,
    )
    if not rows:
        return None
    return changes_of(rows)


async def follow_session(
    connection: Connection, session_id: str, user_id: str | None, ttl: timedelta, echo: bool = False
) -> tuple[str, timedelta]:
    """Return the channel to LISTEN on, and for how long the session is watched."""
    row = await _row(
        connection, "select * from chatledger.follow_session($1, $2, $3, $4)", session_id, user_id, ttl, echo
    )
    return row["channel"], row["watched_for"]


async def read_bodies(
    connection: Connection, session_id: str, user_id: str | None
) -> tuple[SessionHeader, list[tuple[str, dict[str, Any]]]] | None:
    """Read a session's messages as they came in: what was given as null is null, what was absent is absent."""
    rows = await connection.fetch(f"{_READ}($1, $2)", session_id, user_id)
    if not rows:
        return None
    session = rows[0]["session"]
    bodies = bodies_of(message_rows(session, rows[1:]))
    return header_of(session), [(message_id, body_as_appended(body)) for message_id, body in bodies.items()]


async def save_session(connection: Connection, arguments: SaveArguments) -> Outcome:
    first, *rows = await connection.fetch(
        "select * from chatledger.save_session("
        "$1, $2, $3, $4::text::jsonb, $5::text[]::jsonb[], $6::text[]::jsonb[], $7::text[]::jsonb[], $8)",
        *arguments,
    )
    return Outcome(
        header_of(first["session"]),
        first["version_before"],
        {row["message_id"]: (row["sequence"], row["created_at"], row["amended_version"]) for row in rows},
    )


async def get_messages(
    connection: Connection,
    session_id: str,
    user_id: str | None,
    after: int | None,
    before: int | None,
    limit: int | None,
) -> list[ChatMessage]:
    rows = await connection.fetch(
        f"select {', '.join(COLUMNS)} from chatledger.get_messages($1, $2, $3, $4, $5)",
        session_id,
        user_id,
        after,
        before,
        limit,
    )
    return messages_of(rows)


async def list_sessions(
    connection: Connection,
    user_id: str | None,
    limit: int,
    cursor: str | None,
    title: str | None,
    status: str | None,
) -> SessionPage:
    rows = await connection.fetch(
        "select * from chatledger.list_sessions($1, $2, $3, $4, $5)", user_id, limit, cursor, title, status
    )
    return SessionPage(
        sessions=[header_of(row) for row in rows],
        cursor=rows[-1]["cursor"] if len(rows) == limit else None,
    )


async def update_session(
    connection: Connection,
    session_id: str,
    user_id: str | None,
    title: str | None,
    only_if_empty: bool,
    metadata: str | None,
    pinned: bool | None,
    status: str | None,
) -> SessionHeader:
    row = await _row(
        connection,
        "select * from chatledger.update_session($1, $2, $3, $4, $5::text::jsonb, $6, $7)",
        session_id,
        user_id,
        title,
        only_if_empty,
        metadata,
        pinned,
        status,
    )
    return header_of(row)


async def delete_session(connection: Connection, session_id: str, user_id: str | None) -> bool:
    return bool(await connection.fetchval("select * from chatledger.delete_session($1, $2)", session_id, user_id))


async def truncate_session(
    connection: Connection,
    session_id: str,
    from_sequence: int,
    user_id: str | None,
    expected_sequence: int | None,
    fence: int | None,
) -> TruncateReceipt:
    row = await _row(
        connection,
        "select * from chatledger.truncate_session($1, $2, $3, $4, $5)",
        session_id,
        from_sequence,
        user_id,
        expected_sequence,
        fence,
    )
    return TruncateReceipt(*row)


async def fork_session(
    connection: Connection,
    session_id: str,
    new_session_id: str,
    at_sequence: int | None,
    user_id: str | None,
    title: str | None,
) -> SessionHeader:
    row = await _row(
        connection,
        "select * from chatledger.fork_session($1, $2, $3, $4, $5)",
        session_id,
        new_session_id,
        at_sequence,
        user_id,
        title,
    )
    return header_of(row)


async def record_usage(
    connection: Connection, session_id: str, usage_id: str, usage: Usage, user_id: str | None
) -> SessionHeader:
    row = await _row(
        connection,
        "select * from chatledger.record_usage($1, $2, $3, $4, $5, $6, $7::text::jsonb)",
        session_id,
        usage_id,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        user_id,
        encode_object(usage.model_dump(exclude=_USAGE_ARGUMENTS), "usage"),
    )
    return header_of(row)


@dataclass(frozen=True, slots=True)
class Lease:
    """What a stream got, and where its session was then."""

    fence: int
    expires_at: datetime
    version: int
    next_sequence: int
    message_count: int


async def begin_stream(
    connection: Connection,
    session_id: str,
    owner: str,
    ttl: timedelta,
    user_id: str | None,
    stream_id: str,
    force: bool,
    max_streams: int | None,
) -> Lease:
    row = await _row(
        connection,
        "select * from chatledger.begin_stream($1, $2, $3, $4, $5, $6, $7)",
        session_id,
        owner,
        ttl,
        user_id,
        stream_id,
        force,
        max_streams,
    )
    return Lease(*row)


async def renew_stream(connection: Connection, session_id: str, fence: int, ttl: timedelta) -> None:
    await connection.fetchval("select * from chatledger.renew_stream($1, $2, $3)", session_id, fence, ttl)


async def end_stream(connection: Connection, session_id: str, fence: int) -> bool:
    return bool(await connection.fetchval("select * from chatledger.end_stream($1, $2)", session_id, fence))


async def verify_session(connection: Connection, session_id: str | None) -> list[IntegrityProblem]:
    rows = await connection.fetch("select * from chatledger.verify_session($1)", session_id)
    return [IntegrityProblem(*row) for row in rows]


async def status(connection: Connection) -> dict[str, str | None]:
    return {row["item"]: row["value"] for row in await connection.fetch("select * from chatledger.status()")}


async def purge_sessions(connection: Connection, older_than: timedelta, limit: int) -> int:
    return int(await connection.fetchval("select * from chatledger.purge_sessions($1, $2)", older_than, limit))


async def _row(connection: Connection, query: str, *arguments: Any) -> asyncpg.Record:
    return (await connection.fetch(query, *arguments))[0]
