"""The SQL functions, as Python calls: the one door to Postgres, the only module that knows their names and arguments.

Each function here takes the caller's arguments, cleans and encodes them, and returns a :class:`Call`, which goes to
Postgres as often as it is run, with the very same arguments. So an argument that cannot be sent is refused before a
connection is taken, and a retry sends what the first try sent.

Arrays and objects go out as text that Postgres casts, and come back as text or decoded: so a connection or pool of the
caller's works whatever JSON codec was set on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from chatledger.models.bodies import body_as_appended
from chatledger.models.header import SessionHeader, SessionPage, Usage
from chatledger.models.ids import new_id
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import AmendReceipt, AppendReceipt, IntegrityProblem, ToolCallReceipt, TruncateReceipt
from chatledger.models.saves import Outcome, SaveArguments
from chatledger.models.session import ChatSession
from chatledger.postgres.encoding import clean_text, encode_object
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

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A call of an SQL function, ready to be made on any connection."""

    query: str
    arguments: tuple[Any, ...]
    result: Callable[[list[asyncpg.Record]], Result]
    """Makes the result of the rows."""

    async def __call__(self, connection: Connection) -> Result:
        """Make the call."""
        return self.result(await connection.fetch(self.query, *self.arguments))


# Sessions


def create_session(
    session_id: str | None, user_id: str | None, title: str | None, metadata: Mapping[str, Any] | None, status: str
) -> Call[SessionHeader]:
    return Call(
        "select * from chatledger.create_session($1, $2, $3, $4::text::jsonb, $5)",
        (_id(session_id), _text(user_id), _text(title), _object(metadata, "metadata"), clean_text(status)),
        _header,
    )


def read_session(session_id: str, user_id: str | None, last: int | None) -> Call[ChatSession | None]:
    return Call(f"{_READ}($1, $2, null, null, $3)", (clean_text(session_id), _text(user_id), last), _session)


def read_changes(
    session_id: str, user_id: str | None, since: tuple[int | None, int] | None, limit: int | None = None
) -> Call[Changes | None]:
    """Read what changed since a version and next_sequence; None when the session is missing or not this user's.

    With a limit, only the first so many of the new messages. Since no version but a sequence: only the messages from
    there on.
    """
    arguments = (clean_text(session_id), _text(user_id), *(since or (None, None)), limit)
    return Call(f"{_READ}($1, $2, $3, $4, null, $5)", arguments, lambda rows: changes_of(rows) if rows else None)


def read_bodies(
    session_id: str, user_id: str | None
) -> Call[tuple[SessionHeader, list[tuple[str, dict[str, Any]]]] | None]:
    """Read a session's messages as they came in: what was given as null is null, what was absent is absent."""
    return Call(f"{_READ}($1, $2)", (clean_text(session_id), _text(user_id)), _bodies)


def save_session(arguments: SaveArguments) -> Call[Outcome]:
    return Call(
        "select * from chatledger.save_session("
        "$1, $2, $3, $4::text::jsonb, $5::text[]::jsonb[], $6::text[]::jsonb[], $7::text[]::jsonb[], $8)",
        tuple(arguments),
        _outcome,
    )


def list_sessions(
    user_id: str | None, limit: int, cursor: str | None, title: str | None, status: str | None
) -> Call[SessionPage]:
    return Call(
        "select * from chatledger.list_sessions($1, $2, $3, $4, $5)",
        (_text(user_id), limit, _text(cursor), _text(title), _text(status)),
        lambda rows: SessionPage(
            sessions=[header_of(row) for row in rows], cursor=rows[-1]["cursor"] if len(rows) == limit else None
        ),
    )


def update_session(
    session_id: str,
    user_id: str | None,
    title: str | None,
    only_if_empty: bool,
    metadata: Mapping[str, Any] | None,
    pinned: bool | None,
    status: str | None,
) -> Call[SessionHeader]:
    return Call(
        "select * from chatledger.update_session($1, $2, $3, $4, $5::text::jsonb, $6, $7)",
        (
            clean_text(session_id),
            _text(user_id),
            _text(title),
            only_if_empty,
            _object(metadata, "metadata"),
            pinned,
            _text(status),
        ),
        _header,
    )


def delete_session(session_id: str, user_id: str | None) -> Call[bool]:
    return Call(
        "select * from chatledger.delete_session($1, $2)", (clean_text(session_id), _text(user_id)), _value(bool)
    )


def fork_session(
    session_id: str, new_session_id: str | None, at_sequence: int | None, user_id: str | None, title: str | None
) -> Call[SessionHeader]:
    return Call(
        "select * from chatledger.fork_session($1, $2, $3, $4, $5)",
        (clean_text(session_id), _id(new_session_id), at_sequence, _text(user_id), _text(title)),
        _header,
    )


def record_usage(session_id: str, usage_id: str, usage: Usage, user_id: str | None) -> Call[SessionHeader]:
    details = usage.model_dump(exclude={"usage_id", "prompt_tokens", "completion_tokens", "total_tokens"})
    return Call(
        "select * from chatledger.record_usage($1, $2, $3, $4, $5, $6, $7::text::jsonb)",
        (
            clean_text(session_id),
            clean_text(usage_id),
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            _text(user_id),
            encode_object(details, "usage"),
        ),
        _header,
    )


# Messages


def append_messages(
    session_id: str,
    messages: Sequence[str],
    user_id: str | None,
    expected_sequence: int | None = None,
    fence: int | None = None,
) -> Call[list[AppendReceipt]]:
    """Append messages that :func:`chatledger.postgres.encoding.encode_messages` encoded."""
    return Call(
        "select * from chatledger.append_messages($1, $2::text[]::jsonb[], $3, $4, $5)",
        (clean_text(session_id), messages, _text(user_id), expected_sequence, fence),
        lambda rows: [AppendReceipt(*row) for row in rows],
    )


def get_messages(
    session_id: str, user_id: str | None, after: int | None, before: int | None, limit: int | None
) -> Call[list[ChatMessage]]:
    return Call(
        f"select {', '.join(COLUMNS)} from chatledger.get_messages($1, $2, $3, $4, $5)",
        (clean_text(session_id), _text(user_id), after, before, limit),
        messages_of,
    )


def amend_message(
    session_id: str,
    message_id: str,
    patch: Mapping[str, Any],
    expected_version: int | None,
    user_id: str | None,
    fence: int | None,
) -> Call[AmendReceipt]:
    return Call(
        "select * from chatledger.amend_message($1, $2, $3::text::jsonb, $4, $5, $6)",
        (
            clean_text(session_id),
            clean_text(message_id),
            encode_object(patch, "patch"),
            expected_version,
            _text(user_id),
            fence,
        ),
        lambda rows: AmendReceipt(*rows[0]),
    )


def add_tool_call(
    session_id: str, tool_call: Mapping[str, Any], user_id: str | None, message_id: str | None, fence: int | None
) -> Call[ToolCallReceipt]:
    return Call(
        "select * from chatledger.add_tool_call($1, $2::text::jsonb, $3, $4, $5)",
        (clean_text(session_id), encode_object(tool_call, "tool_call"), _text(user_id), _id(message_id), fence),
        lambda rows: ToolCallReceipt(*rows[0]),
    )


def truncate_session(
    session_id: str, from_sequence: int, user_id: str | None, expected_sequence: int | None, fence: int | None
) -> Call[TruncateReceipt]:
    return Call(
        "select * from chatledger.truncate_session($1, $2, $3, $4, $5)",
        (clean_text(session_id), from_sequence, _text(user_id), expected_sequence, fence),
        lambda rows: TruncateReceipt(*rows[0]),
    )


# Streams and following


@dataclass(frozen=True, slots=True)
class Lease:
    """What a stream got, and where its session was then."""

    fence: int
    expires_at: datetime
    version: int
    next_sequence: int
    message_count: int


def begin_stream(
    session_id: str,
    holder: str,
    ttl: timedelta,
    user_id: str | None,
    stream_id: str,
    force: bool,
    max_streams: int | None,
) -> Call[Lease]:
    return Call(
        "select * from chatledger.begin_stream($1, $2, $3, $4, $5, $6, $7)",
        (clean_text(session_id), clean_text(holder), ttl, _text(user_id), stream_id, force, max_streams),
        lambda rows: Lease(*rows[0]),
    )


def renew_stream(session_id: str, fence: int, ttl: timedelta) -> Call[datetime]:
    return Call(
        "select * from chatledger.renew_stream($1, $2, $3)",
        (clean_text(session_id), fence, ttl),
        lambda rows: rows[0][0],
    )


def end_stream(session_id: str, fence: int) -> Call[bool]:
    return Call("select * from chatledger.end_stream($1, $2)", (clean_text(session_id), fence), _value(bool))


def follow_session(
    session_id: str, user_id: str | None, ttl: timedelta, echo: bool = False
) -> Call[tuple[str, timedelta]]:
    """Return the channel to LISTEN on, and for how long the session is watched."""
    return Call(
        "select channel, watched_for from chatledger.follow_session($1, $2, $3, $4)",
        (clean_text(session_id), _text(user_id), ttl, echo),
        lambda rows: (rows[0][0], rows[0][1]),
    )


# For operators


def verify_session(session_id: str | None) -> Call[list[IntegrityProblem]]:
    return Call(
        "select * from chatledger.verify_session($1)",
        (_text(session_id),),
        lambda rows: [IntegrityProblem(*row) for row in rows],
    )


def status() -> Call[dict[str, str | None]]:
    return Call("select * from chatledger.status()", (), lambda rows: {row["item"]: row["value"] for row in rows})


def purge_sessions(older_than: timedelta, limit: int) -> Call[int]:
    return Call("select * from chatledger.purge_sessions($1, $2)", (older_than, limit), _value(int))


# Arguments and results

_READ = f"select {', '.join(COLUMNS)}, removed, session from chatledger.read_session"


def _text(given: str | None) -> str | None:
    return None if given is None else clean_text(given)


def _id(given: str | None) -> str:
    return new_id() if given is None else clean_text(given)


def _object(given: Mapping[str, Any] | None, argument: str) -> str | None:
    return None if given is None else encode_object(given, argument)


def _value(kind: Callable[[Any], Result]) -> Callable[[list[asyncpg.Record]], Result]:
    return lambda rows: kind(rows[0][0])


def _header(rows: list[asyncpg.Record]) -> SessionHeader:
    return header_of(rows[0])


def _session(rows: list[asyncpg.Record]) -> ChatSession | None:
    if not rows:
        return None
    session = rows[0]["session"]
    return session_of(session, message_rows(session, rows[1:]))


def _bodies(rows: list[asyncpg.Record]) -> tuple[SessionHeader, list[tuple[str, dict[str, Any]]]] | None:
    if not rows:
        return None
    session = rows[0]["session"]
    bodies = bodies_of(message_rows(session, rows[1:]))
    return header_of(session), [(message_id, body_as_appended(body)) for message_id, body in bodies.items()]


def _outcome(rows: list[asyncpg.Record]) -> Outcome:
    first, *messages = rows
    return Outcome(
        header_of(first["session"]),
        first["version_before"],
        {row["message_id"]: (row["sequence"], row["created_at"], row["amended_version"]) for row in messages},
    )
