"""Bodies of messages: what of a message can change, and snapshots to find out whether it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from chatledger.models.message import ChatMessage

Body = dict[str, Any]
"""A message's fields as JSON, without its id and its place."""

Snapshot = tuple[Any, ...]
"""An immutable copy of a body, in the order of ``SNAPSHOT_FIELDS``; lists and objects as JSON text, as in a row."""

PLACE_FIELDS = ("sequence", "created_at", "amended_version")
"""Fields of a message that the database sets."""
_FLAT_FIELDS = ("role", "name", "tool_call_id", "refusal", "duration_ms", "content")
_JSON_FIELDS = ("content_parts", "tool_calls", "function_call", "metadata", "extra")
SNAPSHOT_FIELDS = _FLAT_FIELDS + _JSON_FIELDS
_FLAT = len(_FLAT_FIELDS)
_NO_JSON = (None,) * len(_JSON_FIELDS)
BODY_FIELDS = (*_FLAT_FIELDS, *_JSON_FIELDS[1:-1])
_NOT_EXTRA = frozenset({*BODY_FIELDS, "message_id", *PLACE_FIELDS})
_body_values = itemgetter(*BODY_FIELDS)
# As Postgres writes jsonb, so that the text of a value that was loaded and not changed equals its row's.
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


def body_of(message: ChatMessage) -> Body:
    """Return a copy of a message's body; of its own fields, those that are not None."""
    values = zip(BODY_FIELDS, _body_values(message.__dict__), strict=True)
    fields = {name: copy_json(value) for name, value in values if value is not None}
    return fields | {name: copy_json(value) for name, value in (message.__pydantic_extra__ or {}).items()}


def put_body(message: ChatMessage, body: Mapping[str, Any]) -> None:
    """Give a message this body."""
    for name in BODY_FIELDS:
        if not same_json(getattr(message, name), body.get(name)):
            setattr(message, name, copy_json(body.get(name)))
    if (extra := message.__pydantic_extra__) is not None:
        extra.clear()
        extra.update({name: copy_json(value) for name, value in body.items() if name not in BODY_FIELDS})


def snapshot_of(message: ChatMessage) -> Snapshot | None:
    """Return a snapshot of a message's body; None when JSON cannot express the body."""
    try:
        return _snapshot(_body_values(message.__dict__), message.__pydantic_extra__)
    except (ValueError, TypeError, RecursionError):
        return None


def snapshot_of_body(body: Mapping[str, Any]) -> Snapshot:
    """Return a snapshot of a body that comes from JSON."""
    return _snapshot(tuple(map(body.get, BODY_FIELDS)), {k: v for k, v in body.items() if k not in BODY_FIELDS})


def json_text(value: Any) -> str:
    """Return a JSON value as text, written as a row's jsonb is."""
    return _dumps(value)


def _snapshot(values: tuple[Any, ...], extra: dict[str, Any] | None) -> Snapshot:
    flat, content, nested = values[:_FLAT], values[_FLAT - 1], (None, *values[_FLAT:], extra or None)
    if content is not None and not isinstance(content, str):
        flat, nested = (*flat[:-1], None), (content, *nested[1:])
    if nested == _NO_JSON:
        return flat + nested
    return (*flat, *[None if value is None else _dumps(value) for value in nested])


def body_in(snapshot: Snapshot) -> Body:
    """Return the body as a :class:`ChatMessage` has it."""
    # A row keeps nulls of known fields, and keys named like those of the place; the model does not.
    return {
        name: value
        for name, value in body_as_appended(snapshot).items()
        if name not in _NOT_EXTRA or (value is not None and name in BODY_FIELDS)
    }


def body_as_appended(snapshot: Snapshot) -> Body:
    """Return the body of a row as it was appended: what was given as null is null, what was absent is absent."""
    fields = dict(zip(SNAPSHOT_FIELDS, snapshot, strict=True))
    for name in _JSON_FIELDS:
        if fields[name] is not None:
            fields[name] = from_json(fields[name])
    parts, extra = fields.pop("content_parts"), fields.pop("extra") or {}
    body = {name: value for name, value in fields.items() if value is not None}
    body |= {} if parts is None else {"content": parts}
    return body | extra


def same_json(before: Any, after: Any) -> bool:
    """Tell whether two values are the same in JSON, where 1 is not true."""
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(same_json(before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(same_json, before, after))
    return bool(before == after)


def copy_json(value: Any) -> Any:
    """Copy JSON values; several times faster than copy.deepcopy."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    return [copy_json(item) for item in value] if isinstance(value, list) else value
