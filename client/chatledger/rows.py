"""Rows of the database as models. Of JSON they take text and what a codec of the caller's made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic_core import from_json, to_json

from chatledger import intent
from chatledger.models import ChatMessage, ChatSession, Role, SessionHeader, Usage, stored_message

if TYPE_CHECKING:
    import asyncpg

    HeaderRow = str | asyncpg.Record | dict[str, Any]

Header = TypeVar("Header", bound=SessionHeader)

_PLACE = ("message_id", *intent.PLACE_FIELDS)
COLUMNS = (*_PLACE, *intent.FROZEN_FIELDS)
"""What is read of a message, in this order."""
_Text = str | None
MessageRow = tuple[
    str, int, datetime, int | None, Role, _Text, _Text, _Text, int | None, _Text, _Text, _Text, _Text, _Text, _Text
]
"""A message as the database has it: the values of ``COLUMNS``, with JSON as text."""
_MESSAGE_ID: Final = 0
SEQUENCE: Final = 1
"""Where a row has its sequence."""
_BODY: Final = 4  # and all behind it
_EXTRA = COLUMNS.index("extra")


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in a session since a version; since none: all of it."""

    header: dict[str, Any]
    """As JSON has it."""
    messages: dict[int, MessageRow]
    """New and amended messages by sequence."""
    removed: list[int]


def changes_of(records: Sequence[asyncpg.Record]) -> Changes:
    """Return what read_session answered: a row with the header, then one a message."""
    session = records[0]["session"]
    rows = message_rows(session, (record for record in records[1:] if not record["removed"]))
    return Changes(
        _json(session),
        {row[SEQUENCE]: row for row in rows},
        [record["sequence"] for record in records[1:] if record["removed"]],
    )


def message_rows(session: Any, records: Iterable[asyncpg.Record]) -> list[MessageRow]:
    """Return the messages that came with a header, their JSON as text."""
    rows = [record[: len(COLUMNS)] for record in records]
    if not isinstance(session, str):  # a codec of the caller's took JSON apart
        rows = [
            tuple(to_json(value).decode() if isinstance(value, dict | list) else value for value in row) for row in rows
        ]
    return rows


def session_of(header: HeaderRow, rows: Sequence[MessageRow]) -> ChatSession:
    """Return the session with this header and these messages."""
    bodies = intent.Bodies((row[_MESSAGE_ID], row[_BODY:]) for row in rows)
    return _header(ChatSession, header, bodies, messages=[message_of(row) for row in rows])


def header_of(header: HeaderRow) -> SessionHeader:
    """Return a session's header without messages."""
    return _header(SessionHeader, header)


def _header(model: type[Header], row: HeaderRow, bodies: intent.Bodies | None = None, **more: Any) -> Header:
    fields: dict[str, Any] = dict(_json(row).items()) | more
    fields["metadata"] = _json(fields["metadata"])
    fields["usage"] = {key: fields.pop(key) for key in Usage.model_fields}
    return model.model_validate(fields, context=bodies)


def message_of(row: MessageRow | asyncpg.Record) -> ChatMessage:
    """Return the message that the database has so."""
    fields = _fields(row)
    return stored_message(fields) if row[_EXTRA] is None else ChatMessage.model_validate(fields)


def body_of(row: asyncpg.Record) -> dict[str, Any]:
    """Return a message as it came in, without its id."""
    body = {name: value for name, value in _fields(row).items() if value is not None and name not in _PLACE}
    extra: dict[str, Any] = _json(row["extra"] or "{}")
    return body | extra


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


def _json(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else value
