"""What a caller changed in its copy of a session since it loaded or saved it: all that a save sends. Without I/O."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from chatledger.models.header import SessionHeader
    from chatledger.models.message import ChatMessage
    from chatledger.models.session import ChatSession

Change = dict[str, Any]
"""``{"from": …, "to": …}``; an end that is missing: there was nothing, or shall be nothing."""

Frozen = tuple[Any, ...]
"""A message's body as no change in place can reach it, in the order of ``FROZEN_FIELDS``; what JSON calls a list or an
object, as its text. A row of the database is like that."""

PLACE_FIELDS = ("sequence", "created_at", "amended_version")
"""Fields of a message that the database sets."""
_FLAT_FIELDS = ("role", "name", "tool_call_id", "refusal", "duration_ms", "content")
_JSON_FIELDS = ("content_parts", "tool_calls", "function_call", "metadata", "extra")
FROZEN_FIELDS = _FLAT_FIELDS + _JSON_FIELDS
_FLAT = len(_FLAT_FIELDS)
_NO_JSON = (None,) * len(_JSON_FIELDS)
_BODY_FIELDS = (*_FLAT_FIELDS, *_JSON_FIELDS[1:-1])
_NOT_EXTRA = frozenset({*_BODY_FIELDS, "message_id", *PLACE_FIELDS})
_body_values = itemgetter(*_BODY_FIELDS)
HEADER_FIELDS = ("title", "pinned", "status")
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")


class Bodies(dict[str, Frozen]):
    """The bodies of the messages that were read, by id."""


@dataclass
class Saved:
    """What the ledger is known to hold of a session, as far as a caller can change it in its copy."""

    header: dict[str, Any]
    metadata: dict[str, Any]
    usage: dict[str, int]
    version: int = 0
    """The session's version when this was known."""
    messages: dict[str, Frozen] = field(default_factory=dict)
    """The body of each stored message, by its id."""
    messages_sent: dict[str, str] = field(default_factory=dict)
    """New messages that were sent and may be stored, by id, as they were sent. Sent again like that, with what was
    changed since as an amendment."""
    usage_sent: list[dict[str, Any]] = field(default_factory=list)
    """Usage that was sent, until it is known to be recorded: after an unknown outcome it is sent with the same id."""
    unanswered: Intent | None = field(default=None, repr=False)
    """The last save, until its answer is there. Without one its changes are sent again before those that were made
    since, which build on them: they may be stored. Only the object itself knows it, no copy of it."""
    _turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = field(default=None, repr=False)

    def turn(self) -> asyncio.Lock:
        """One save of an object at a time: the next one starts from what the last one saved. A copy has its own."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Lock()
        return self._turn[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_turn": None, "unanswered": None}

    def __deepcopy__(self, memo: Any) -> Saved:
        return replace(
            self,
            header=dict(self.header),
            metadata=copy_json(self.metadata),
            usage=dict(self.usage),
            messages=dict(self.messages),
            _turn=None,
            unanswered=None,
            messages_sent=dict(self.messages_sent),
            usage_sent=copy_json(self.usage_sent),
        )


@dataclass
class Changed:
    """A message that is new or was changed. The caller may change it again while it is being saved."""

    message: ChatMessage
    index: int
    """Its place in the caller's list."""
    message_id: str
    body: dict[str, Any]
    before: dict[str, Any] | None
    """The body that the ledger holds; None: it is new."""
    stored_id: str = ""
    stored: dict[str, Any] = field(default_factory=dict)
    """Id and body as the ledger holds them once this is saved: some characters cannot be stored."""


@dataclass
class Intent:
    """What to save."""

    header: dict[str, Any]
    messages: list[Changed]
    usage: list[dict[str, Any]]
    sent: Saved
    """The caller's header as it was when this was made: it may change while it is being saved."""


@dataclass(frozen=True)
class Outcome:
    """What a save came to."""

    session: SessionHeader
    version_before: int
    places: dict[str, tuple[int, datetime, int | None]]
    """Sequence, created_at and amended_version of each message that was sent, by its id."""


def body_of(message: ChatMessage) -> dict[str, Any]:
    """Return a copy of what can change in a message; of its fields, those that are not None."""
    values = zip(_BODY_FIELDS, _body_values(message.__dict__), strict=True)
    fields = {name: copy_json(value) for name, value in values if value is not None}
    return fields | {name: copy_json(value) for name, value in (message.model_extra or {}).items()}


def frozen(message: ChatMessage) -> Frozen | None:
    """Freeze a message's body; None when JSON cannot express it."""
    try:
        return _frozen(_body_values(message.__dict__), message.__pydantic_extra__)
    except (ValueError, RecursionError):
        return None


def frozen_body(body: Mapping[str, Any]) -> Frozen:
    """Freeze a body that comes from JSON."""
    return _frozen(tuple(map(body.get, _BODY_FIELDS)), {k: v for k, v in body.items() if k not in _BODY_FIELDS})


def _frozen(values: tuple[Any, ...], extra: dict[str, Any] | None) -> Frozen:
    flat, content, nested = values[:_FLAT], values[_FLAT - 1], (None, *values[_FLAT:], extra or None)
    if content is not None and not isinstance(content, str):
        flat, nested = (*flat[:-1], None), (content, *nested[1:])
    if nested == _NO_JSON:
        return flat + nested
    return (*flat, *[None if value is None else to_json(value) for value in nested])


def _rewritten(frozen: Frozen) -> Frozen:
    """Return it with JSON as we write it; Postgres puts blanks between."""
    return (*frozen[:_FLAT], *[None if text is None else to_json(from_json(text)) for text in frozen[_FLAT:]])


def thawed(frozen: Frozen) -> dict[str, Any]:
    """Return the body that was frozen."""
    # Rows keep known fields that were given as null, and keys like those of the place's; the model does not.
    return {
        name: value
        for name, value in as_it_came(frozen).items()
        if name not in _NOT_EXTRA or (value is not None and name in _BODY_FIELDS)
    }


def as_it_came(frozen: Frozen) -> dict[str, Any]:
    """Return the body of a row as it was appended: what was given as null is null, what was absent is absent."""
    fields = dict(zip(FROZEN_FIELDS, frozen, strict=True))
    for name in _JSON_FIELDS:
        if fields[name] is not None:
            fields[name] = from_json(fields[name])
    parts, extra = fields.pop("content_parts"), fields.pop("extra") or {}
    body = {name: value for name, value in fields.items() if value is not None}
    body |= {} if parts is None else {"content": parts}
    return body | extra


def nothing_saved() -> Saved:
    """Return what the ledger holds of a session that was never saved."""
    return Saved({"title": None, "pinned": False, "status": "active"}, {}, dict.fromkeys(USAGE_FIELDS, 0))


def saved_as_it_is(session: ChatSession, new_ids: Collection[str] = ()) -> Saved:
    """Return what the ledger holds of a session that was just loaded: all but the messages without a place."""
    return replace(
        _header_of(session),
        messages={
            message.message_id: body
            for message in session.messages
            if message.sequence is not None and message.message_id not in new_ids and (body := frozen(message))
        },
    )


def saved_as_read(session: ChatSession, bodies: Bodies) -> Saved:
    """Return what the ledger holds of a session that was read with these bodies of messages."""
    return replace(_header_of(session), messages=bodies)


def _header_of(session: SessionHeader) -> Saved:
    return Saved(
        {name: getattr(session, name) for name in HEADER_FIELDS},
        copy_json(session.metadata),
        {name: getattr(session.usage, name) for name in USAGE_FIELDS},
        session.version,
    )


def changes(session: ChatSession, saved: Saved, new_id: str) -> Intent:
    """Return what the caller changed since.

    Args:
        session: The caller's copy.
        saved: What the ledger holds of it.
        new_id: Id for the usage that was not sent before.
    """
    header: dict[str, Any] = {
        name: _change(before, after)
        for name, before in saved.header.items()
        if (after := getattr(session, name)) != before
    }
    if metadata := _changed_keys(saved.metadata, session.metadata):
        header["metadata"] = metadata

    intent = Intent(header, [], list(saved.usage_sent), _header_of(session))
    for index, message in enumerate(session.messages):
        before, after = saved.messages.get(message.message_id), frozen(message)
        if before is None:
            intent.messages.append(Changed(message, index, message.message_id, body_of(message), None))
        elif before != after:
            if _rewritten(before) != after:
                body, stored = body_of(message), thawed(before)
                if not _same(stored, body):
                    intent.messages.append(Changed(message, index, message.message_id, body, stored))
                    continue
            if after is not None:
                saved.messages[message.message_id] = after  # sooner the next time

    unsent = {
        name: getattr(session.usage, name) - saved.usage[name] - sum(sent[name] for sent in saved.usage_sent)
        for name in USAGE_FIELDS
    }
    if any(unsent.values()):
        intent.usage.append({"usage_id": new_id, **unsent})
    return intent


def repeatable(intent: Intent) -> Intent | None:
    """Return what of a save without an answer must be sent again, as it was, before what was changed since.

    That is changes of what was there before. New messages are sent with the next save, if the caller still has them.
    """
    amended = [changed for changed in intent.messages if changed.before is not None]
    return replace(intent, messages=amended) if intent.header or amended else None


def remember_usage(saved: Saved, intent: Intent) -> None:
    """Keep the ids under which usage is sent. What cannot be recorded is refused, and must not be kept."""
    saved.usage_sent = [sent for sent in intent.usage if min(sent[name] for name in USAGE_FIELDS) >= 0]


def amendment(message_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes one body of a message the other, as the ledger takes it; {} when they are the same."""
    fields = _changed_keys(before, after)
    changed: dict[str, Any] = {}
    if added := _only_added(before.get("tool_calls") or [], after.get("tool_calls") or []):
        # Not the whole list: somebody else may add a call of theirs.
        del fields["tool_calls"]
        changed["add_tool_calls"] = added
    metadata = before.get("metadata", {}), after.get("metadata")
    if "metadata" in fields and isinstance(metadata[1], dict) and any(metadata):
        # Likewise.
        del fields["metadata"]
        changed["metadata"] = _changed_keys(metadata[0], metadata[1])
    if fields:
        changed["fields"] = fields
    return {"message_id": message_id, **changed} if changed else {}


def _only_added(before: list[Any], after: list[Any]) -> list[Any]:
    """Return what was added at the end of a list of tool calls, or nothing when it was changed in another way too.

    Nor when an id comes twice: the ledger adds a call once for each id.
    """
    if not isinstance(after, list) or not _same(before, after[: len(before)]):
        return []
    ids = [call.get("id") if isinstance(call, dict) else None for call in after]
    twice = any(call_id in ids[:place] for place, call_id in enumerate(ids))
    return [] if twice else after[len(before) :]


def _changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    missing = object()
    changed = {}
    for key in before.keys() | after.keys():
        if not _same(before.get(key, missing), after.get(key, missing)):
            ends = (("from", before.get(key, missing)), ("to", after.get(key, missing)))
            changed[key] = {end: value for end, value in ends if value is not missing}
    return changed


def _same(before: Any, after: Any) -> bool:
    """Tell whether two values are the same in JSON, where 1 is not true."""
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after)


def _change(before: Any, after: Any) -> Change:
    return {end: value for end, value in (("from", before), ("to", after)) if value is not None}


def settle(session: ChatSession, saved: Saved, intent: Intent, outcome: Outcome) -> None:
    """Write into the caller's copy, and into what is known to be saved, what a save came to.

    The copy may have changed while it was being saved, and other saves of it may have come back in the meantime.
    """
    for changed in intent.messages:
        saved.messages_sent.pop(changed.message_id, None)
        saved.messages[changed.stored_id] = frozen_body(changed.stored)
        message = changed.message
        if message.message_id == changed.message_id:
            message.message_id = changed.stored_id
        if place := outcome.places.get(changed.stored_id):
            message.sequence, message.created_at, message.amended_version = place
        if not _same(changed.body, changed.stored) and _same(changed.body, body_of(message)):
            _put(message, changed.stored)

    known = {n: saved.usage[n] + sum(sent[n] for sent in saved.usage_sent) for n in USAGE_FIELDS}
    unsent = {n: getattr(session.usage, n) - known[n] for n in USAGE_FIELDS}
    ids = {sent["usage_id"] for sent in intent.usage}
    saved.usage_sent = [sent for sent in saved.usage_sent if sent["usage_id"] not in ids]

    stored = _header_of(outcome.session)
    if stored.version >= saved.version:  # also the same: what was to be changed may be as it was, or never be so
        # What the caller changed while it was being saved builds on what was sent, not on what others made of that.
        sent = intent.sent
        for name, value in stored.header.items():
            if getattr(session, name) == sent.header[name]:
                setattr(session, name, value)
            else:
                stored.header[name] = sent.header[name]
        merged = _merged(stored.metadata, sent.metadata, session.metadata)
        stored.metadata = _merged(stored.metadata, session.metadata, sent.metadata)
        session.metadata.clear()  # the same object: callers may hold it
        session.metadata.update(merged)
        for name in ("session_id", "user_id", "message_count", "next_sequence", "started_at", "updated_at"):
            setattr(session, name, getattr(outcome.session, name))
        saved.header, saved.metadata, saved.usage, saved.version = (
            stored.header,
            stored.metadata,
            stored.usage,
            stored.version,
        )
        # A copy that missed what others did keeps the version that it knows whole.
        if outcome.version_before == session.version or session.version == 0:
            session.version = stored.version
    for n in USAGE_FIELDS:
        setattr(session.usage, n, saved.usage[n] + sum(sent[n] for sent in saved.usage_sent) + unsent[n])


def _put(message: ChatMessage, body: Mapping[str, Any]) -> None:
    for name in _BODY_FIELDS:
        if not _same(getattr(message, name), body.get(name)):
            setattr(message, name, copy_json(body.get(name)))
    if extra := message.model_extra:
        extra.clear()
        extra.update({name: copy_json(value) for name, value in body.items() if name not in _BODY_FIELDS})


def _merged(stored: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored metadata with what makes ``after`` of ``before``."""
    merged = copy_json(stored)
    for key, change in _changed_keys(before, after).items():
        if "to" in change:
            merged[key] = change["to"]
        else:
            merged.pop(key, None)
    return dict(merged)


def unsaved(session: ChatSession, saved: Saved, new_id: str) -> dict[str, Any] | None:
    """Return what a copy needs besides its fields to know its changes: the values before them. None: there are none."""
    intent = changes(session, saved, new_id)
    remember_usage(saved, intent)
    before: dict[str, Any] = {}
    if saved.version == 0:
        # Never saved: all of it is new, but its usage must be counted once, whoever saves it first.
        before |= {"usage_sent": intent.usage} if intent.usage else {}
        before |= {"messages_sent": saved.messages_sent} if saved.messages_sent else {}
        return dict(copy_json(before)) or None
    if names := [name for name in intent.header if name != "metadata"]:
        before["header"] = {name: saved.header[name] for name in names}
    if "metadata" in intent.header:
        before["metadata"] = saved.metadata
    if intent.usage:
        before |= {"usage": saved.usage, "usage_sent": intent.usage}
    if amended := {changed.message_id: changed.before for changed in intent.messages if changed.before is not None}:
        before["messages"] = amended
    if saved.messages_sent:
        before["messages_sent"] = saved.messages_sent
    if new := [c.message_id for c in intent.messages if c.before is None and c.message.sequence is not None]:
        before["new"] = new
    return dict(copy_json(before)) or None


def saved_but(session: ChatSession, before: Mapping[str, Any]) -> Saved:
    """Return what the ledger holds of a copy whose :func:`unsaved` this is."""
    saved = saved_as_it_is(session, before.get("new", ()))
    saved.header |= before.get("header", {})
    saved.metadata = before.get("metadata", saved.metadata)
    saved.usage = before.get("usage", saved.usage)
    saved.messages |= {message_id: frozen_body(body) for message_id, body in before.get("messages", {}).items()}
    restore_sent(saved, before)
    return saved


def restore_sent(saved: Saved, before: Mapping[str, Any]) -> None:
    """Take over what a copy had sent whose outcome it did not know."""
    saved.usage_sent = before.get("usage_sent", [])
    saved.messages_sent = before.get("messages_sent", {})


def copy_json(value: Any) -> Any:
    """Copy JSON values; several times faster than copy.deepcopy."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    return [copy_json(item) for item in value] if isinstance(value, list) else value
