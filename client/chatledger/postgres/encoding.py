"""Messages as JSON for Postgres, which cannot store all that Python can say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json

from chatledger.errors import InvalidArgument, InvalidMessage
from chatledger.models.bodies import PLACE_FIELDS
from chatledger.models.changes import MessageChange, amendment_of
from chatledger.models.ids import new_id
from chatledger.models.message import ChatMessage
from chatledger.models.saves import SentMessage

REPLACEMENT = "\ufffd"

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def clean_text(text: str) -> str:
    """Replace each NUL and each lone surrogate, which Postgres refuses, by U+FFFD.

    Raises:
        InvalidArgument: It is not a string.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"expected a string, not {type(text).__name__}")
    if text.isascii() and "\0" not in text:
        return text
    if not _is_unicode(text):  # two halves side by side, from two chunks of a stream, are one character
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return "".join(REPLACEMENT if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def encode_json(value: Any) -> str:
    """Return JSON that Postgres takes and gives back equal.

    Raises:
        ValueError, TypeError, RecursionError: JSON cannot express the value.
    """
    text = _dumps(value)
    # The usual case costs two searches; only what may need it is looked at piece by piece.
    if "\\u0000" in text or "e+" in text or not _is_unicode(text):
        text = _dumps(_storable(value))
    return text


def encode_object(value: Mapping[str, Any], argument: str) -> str:
    """Encode an argument that is a JSON object.

    Raises:
        InvalidArgument: JSON cannot express it.
    """
    try:
        return encode_json(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"{argument} is not JSON: {error}", detail={"argument": argument}) from error


def encode_message(message: ChatMessage | Mapping[str, Any], index: int) -> str:
    """Encode a message for ``append_messages``; one without an id gets one.

    Raises:
        InvalidMessage: It is neither a message nor a mapping, or JSON cannot express one of its fields.
    """
    if isinstance(message, ChatMessage):
        fields = {k: v for k, v in message.__dict__.items() if v is not None and k not in PLACE_FIELDS}
        body = fields | (message.__pydantic_extra__ or {})
    elif isinstance(message, Mapping):
        body = dict(message)
    else:
        raise invalid_message(index, "", f"is a {type(message).__name__}; expected a ChatMessage or a mapping")
    if "message_id" not in body:
        body["message_id"] = new_id()
    try:
        return encode_json(body)
    except (ValueError, TypeError, RecursionError):
        for field, value in body.items():
            try:
                encode_json({field: value})
            except (ValueError, TypeError, RecursionError) as error:
                raise invalid_message(index, str(field), f"is not JSON: {error}") from error
        raise


def encode_messages(messages: Iterable[ChatMessage | Mapping[str, Any]]) -> list[str]:
    """Encode a batch for ``append_messages``.

    Raises:
        InvalidMessage: As :func:`encode_message`.
    """
    return [encode_message(message, index) for index, message in enumerate(messages)]


def encode_changes(changed: Iterable[MessageChange]) -> tuple[list[SentMessage], list[str], list[str]]:
    """Encode the messages of a save: return them as they are sent, the new ones as JSON, and the amendments as JSON.

    Raises:
        InvalidMessage: JSON cannot express a field of a message.
        InvalidArgument: A stored message has another role.
    """
    sent: list[SentMessage] = []
    messages: list[str] = []
    amendments: list[str] = []
    for change in changed:
        text = encode_message({"message_id": change.message_id} | change.body, change.index)
        try:
            stored = from_json(text)
        except ValueError as error:  # deeper than anybody could read it again
            raise invalid_message(change.index, _too_deep(change.body), f"is nested too deeply: {error}") from error
        stored_id = stored.pop("message_id")
        sent.append(
            SentMessage(change.index, change.message_id, change.body, stored_id, stored, is_new=change.before is None)
        )
        if change.before is None:
            messages.append(text)
            continue
        if change.before["role"] != stored["role"]:
            raise InvalidArgument(
                f"message {change.index}: role cannot change: the message is stored",
                detail={"argument": "messages", "index": change.index, "field": "role"},
                hint="Nothing was stored. Append another message",
            )
        if amendment := amendment_of(stored_id, change.before, stored):
            amendments.append(encode_json(amendment))
    return sent, messages, amendments


def _too_deep(body: Mapping[str, Any]) -> str:
    """Return the field that is nested too deeply to be read."""
    for field, value in body.items():
        try:
            from_json(encode_json(value))
        except ValueError:
            return field
    return ""


def check_depth(message: ChatMessage, index: int) -> None:
    """Look for what makes a message impossible to compare with the stored one.

    Raises:
        InvalidMessage: A field contains itself, or is nested deeper than pydantic reads, let alone the ledger takes.
    """
    for field, value in (message.__dict__ | (message.__pydantic_extra__ or {})).items():
        try:
            from_json(encode_json({field: None if field in PLACE_FIELDS else value}))
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid_message(index, field, f"is not JSON, or is nested too deeply: {error}") from error


def invalid_message(index: int, field: str, problem: str) -> InvalidMessage:
    """Return the error for a message of a batch."""
    return InvalidMessage(
        f"message {index}: {field} {problem}".replace(":  ", ": "),
        detail={"index": index, "field": field, "problem": problem},
        hint="Nothing of this batch was stored. Correct the message and send the batch again.",
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        cleaned: dict[Any, Any] = {}
        for key, item in value.items():
            name = clean_text(key) if isinstance(key, str) else key
            while name in cleaned:  # two keys that differ only in what was replaced: keep both
                name += REPLACEMENT
            cleaned[name] = _storable(item)
        return cleaned
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    # Postgres writes 1e23 out in full; as an int it comes back equal.
    if isinstance(value, float) and abs(value) >= 1e16 and value.is_integer():
        return int(value)
    return value
