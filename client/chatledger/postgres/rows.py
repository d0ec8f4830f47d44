"""Rows of the database as models. Of JSON they take text and what a codec of the caller's made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from chatledger.models.bodies import PLACE_FIELDS, SNAPSHOT_FIELDS, json_text
from chatledger.models.header import SessionHeader, UsageTotals
from chatledger.models.message import ChatMessage, Role
from chatledger.models.session import ChatSession, StoredBodies

if TYPE_CHECKING:
    import asyncpg

    HeaderRow = str | asyncpg.Record | dict[str, Any]

Header = TypeVar("Header", bound=SessionHeader)

_PLACE = ("message_id", *PLACE_FIELDS)
COLUMNS = (*_PLACE, *SNAPSHOT_FIELDS)
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
_FIELDS = set(ChatMessage.model_fields)
# A model's slots, by the descriptors themselves: by name it takes 1.4 times as long.
_set_values, _set_names, _set_extra, _set_private = (
    vars(BaseModel)[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


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
        rows = [tuple(json_text(value) if isinstance(value, dict | list) else value for value in row) for row in rows]
    return rows


def session_of(header: HeaderRow, rows: Sequence[MessageRow]) -> ChatSession:
    """Return the session with this header and these messages."""
    return _header(ChatSession, header, bodies_of(rows), messages=messages_of(rows))


def header_of(header: HeaderRow) -> SessionHeader:
    """Return a session's header without messages."""
    return _header(SessionHeader, header)


def _header(model: type[Header], row: HeaderRow, bodies: StoredBodies | None = None, **more: Any) -> Header:
    fields: dict[str, Any] = dict(_json(row).items()) | more
    fields["metadata"] = _json(fields["metadata"])
    fields["total_usage"] = {key: fields.pop(key) for key in UsageTotals.model_fields}
    return model.model_validate(fields, context=bodies)


def messages_of(rows: Iterable[MessageRow | asyncpg.Record]) -> list[ChatMessage]:
    """Return the messages that the database has so, without checking again what the ledger checked.

    Written out, down to what model_construct does: a load spends much of its time here.
    """
    messages, new = [], object.__new__
    for (
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
    ) in rows:
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
        if extra is None:
            message = new(ChatMessage)
            _set_values(message, fields)
            _set_names(message, _FIELDS)  # shared: it has all that could be added
            _set_extra(message, {})
            _set_private(message, None)
        else:
            # Where the caller's message had a key like one of the place's, ours wins in the model.
            message = ChatMessage.model_validate(_json(extra) | fields)
        messages.append(message)
    return messages


def bodies_of(rows: Iterable[MessageRow]) -> StoredBodies:
    """Return the bodies of the messages, by id."""
    bodies = StoredBodies()
    for row in rows:
        bodies[row[_MESSAGE_ID]] = row[_BODY:]
    return bodies


def _json(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else value
