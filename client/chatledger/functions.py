"""The SQL functions, as Python calls: the one module that knows their names, arguments and rows.

Arrays and objects go out as text that Postgres casts, and come back as text or decoded: so a connection or pool of the
caller's works whatever JSON codec was set on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json, to_json

from chatledger import intent
from chatledger.models import (
    AmendReceipt,
    AppendReceipt,
    ChatMessage,
    ChatSession,
    Problem,
    Role,
    SessionHeader,
    SessionPage,
    ToolCallReceipt,
    Truncation,
    Usage,
    stored_message,
)

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Row = asyncpg.Record | dict[str, Any]

Header = TypeVar("Header", bound=SessionHeader)


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
    return _header(SessionHeader, row)


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
    return session_of(_json(session), _message_rows(session, rows[1:]))


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in a session since a version; since none: all of it."""

    header: dict[str, Any]
    """As JSON has it."""
    messages: dict[int, MessageRow]
    """New and amended messages by sequence."""
    removed: list[int]


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
    session = rows[0]["session"]
    return Changes(
        _json(session),
        {row[1]: row for row in _message_rows(session, (row for row in rows[1:] if not row["removed"]))},
        [row["sequence"] for row in rows[1:] if row["removed"]],
    )


def session_of(header: dict[str, Any], rows: Sequence[MessageRow]) -> ChatSession:
    """Return the session with this header, as JSON has it, and these messages."""
    bodies = intent.Bodies((row[0], row[4:]) for row in rows)
    return _header(ChatSession, header, bodies, messages=[message_of(row) for row in rows])


def header_of(header: dict[str, Any]) -> SessionHeader:
    """Return this header, as JSON has it, without messages."""
    return _header(SessionHeader, header)


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
    return _header(SessionHeader, _json(rows[0]["session"])), [(row["message_id"], _body(row)) for row in rows[1:]]


async def save_session(
    connection: Connection,
    session_id: str,
    user_id: str | None,
    read_version: int,
    header: str,
    messages: Sequence[str],
    amendments: Sequence[str],
    usage: Sequence[str],
    fence: int | None,
) -> intent.Outcome:
    first, *rows = await connection.fetch(
        "select * from chatledger.save_session("
        "$1, $2, $3, $4::text::jsonb, $5::text[]::jsonb[], $6::text[]::jsonb[], $7::text[]::jsonb[], $8)",
        session_id,
        user_id,
        read_version,
        header,
        messages,
        amendments,
        usage,
        fence,
    )
    return intent.Outcome(
        _header(SessionHeader, _json(first["session"])),
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
        f"select {', '.join(_COLUMNS)} from chatledger.get_messages($1, $2, $3, $4, $5)",
        session_id,
        user_id,
        after,
        before,
        limit,
    )
    return [message_of(row) for row in rows]


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
        sessions=[_header(SessionHeader, row) for row in rows],
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
    return _header(SessionHeader, row)


async def delete_session(connection: Connection, session_id: str, user_id: str | None) -> bool:
    return bool(await connection.fetchval("select * from chatledger.delete_session($1, $2)", session_id, user_id))


async def truncate_session(
    connection: Connection,
    session_id: str,
    from_sequence: int,
    user_id: str | None,
    expected_sequence: int | None,
    fence: int | None,
) -> Truncation:
    row = await _row(
        connection,
        "select * from chatledger.truncate_session($1, $2, $3, $4, $5)",
        session_id,
        from_sequence,
        user_id,
        expected_sequence,
        fence,
    )
    return Truncation(*row)


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
    return _header(SessionHeader, row)


async def record_usage(
    connection: Connection, session_id: str, usage_id: str, usage: Usage, user_id: str | None
) -> SessionHeader:
    row = await _row(
        connection,
        "select * from chatledger.record_usage($1, $2, $3, $4, $5, $6)",
        session_id,
        usage_id,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        user_id,
    )
    return _header(SessionHeader, row)


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


async def verify_session(connection: Connection, session_id: str | None) -> list[Problem]:
    rows = await connection.fetch("select * from chatledger.verify_session($1)", session_id)
    return [Problem(*row) for row in rows]


async def status(connection: Connection) -> dict[str, str | None]:
    return {row["item"]: row["value"] for row in await connection.fetch("select * from chatledger.status()")}


async def purge_sessions(connection: Connection, older_than: timedelta, limit: int) -> int:
    return int(await connection.fetchval("select * from chatledger.purge_sessions($1, $2)", older_than, limit))


_PLACE = ("message_id", "sequence", "created_at", "amended_version")
_COLUMNS = (*_PLACE, *intent.FROZEN_FIELDS)
_EXTRA = _COLUMNS.index("extra")
_READ = f"select {', '.join(_COLUMNS)}, removed, session from chatledger.read_session"
_Text = str | None
MessageRow = tuple[
    str, int, datetime, int | None, Role, _Text, _Text, _Text, int | None, _Text, _Text, _Text, _Text, _Text, _Text
]
"""A message as the database has it: the values of ``_COLUMNS``, with JSON as text."""


def _message_rows(session: Any, rows: Iterable[asyncpg.Record]) -> list[MessageRow]:
    messages = [row[: len(_COLUMNS)] for row in rows]
    if not isinstance(session, str):  # a codec of the caller's took JSON apart
        messages = [
            tuple(to_json(value).decode() if isinstance(value, dict | list) else value for value in row)
            for row in messages
        ]
    return messages


def _fields(row: MessageRow | asyncpg.Record) -> dict[str, Any]:
    """Return the fields of a message. Written out: a load spends much of its time here."""
    (
        message_id,
        sequence,
        created_at,
        amended_version,
        role,
        name,
        tool_call_id,
        refusal,
        duration_ms,
        content,
        parts,
        tool_calls,
        function_call,
        metadata,
        extra,
        *_,
    ) = row
    fields: dict[str, Any] = {
        "message_id": message_id,
        "role": role,
        "content": content if parts is None else _json(parts),
        "name": name,
        "tool_call_id": tool_call_id,
        "refusal": refusal,
        "tool_calls": tool_calls and _json(tool_calls),
        "function_call": function_call and _json(function_call),
        "metadata": metadata and _json(metadata),
        "duration_ms": duration_ms,
        "sequence": sequence,
        "created_at": created_at,
        "amended_version": amended_version,
    }
    if extra is not None:
        # Where the caller's message had a key like one of the place's, ours wins in the model.
        fields = _json(extra) | fields
    return fields


def message_of(row: MessageRow | asyncpg.Record) -> ChatMessage:
    """Return the message that the database has so."""
    fields = _fields(row)
    return stored_message(fields) if row[_EXTRA] is None else ChatMessage.model_validate(fields)


def _body(row: asyncpg.Record) -> dict[str, Any]:
    """Return a message as it came in, without its id."""
    body = {name: value for name, value in _fields(row).items() if value is not None and name not in _PLACE}
    extra: dict[str, Any] = _json(row["extra"] or "{}")
    return body | extra


def _header(model: type[Header], row: Row, bodies: intent.Bodies | None = None, **more: Any) -> Header:
    fields: dict[str, Any] = dict(row.items()) | more
    fields["metadata"] = _json(fields["metadata"])
    fields["usage"] = {key: fields.pop(key) for key in Usage.model_fields}
    return model.model_validate(fields, context=bodies)


def _json(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else value


async def _row(connection: Connection, query: str, *arguments: Any) -> asyncpg.Record:
    return (await connection.fetch(query, *arguments))[0]
