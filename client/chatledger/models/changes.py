"""What a caller changed in its copy of a session since it was loaded or saved.

A copy has a :class:`Baseline`: what the ledger holds of it, as far as the copy knows. :func:`changes_of` compares the
two. Nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from chatledger.errors import InvalidArgument, MessageIdConflict
from chatledger.models.bodies import (
    Body,
    Snapshot,
    body_in,
    body_of,
    copy_json,
    same_json,
    snapshot_of,
    snapshot_of_body,
)
from chatledger.models.data import SessionData
from chatledger.models.header import Usage

Change = dict[str, Any]
"""``{"from": …, "to": …}``; without "from" there was nothing, without "to" there shall be nothing."""

HEADER_FIELDS = ("title", "pinned", "status")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the ledger holds of a session, as far as a copy of it knows. Never changed, so copies may share one."""

    version: int = 0
    """The session's version when this was known; 0: it was never saved."""
    header: Mapping[str, Any] = field(default_factory=lambda: {"title": None, "pinned": False, "status": "active"})
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Mapping[str, Snapshot] = field(default_factory=dict)
    """The body of each stored message of the copy, by its id, in the order of the list."""
    usage: Mapping[str, Usage] = field(default_factory=dict)
    """What was recorded, by its id."""

    @classmethod
    def of(cls, session: SessionData, messages: Mapping[str, Snapshot] | None = None) -> Self:
        """Return the baseline of a copy that is as it was read.

        Args:
            session: The copy.
            messages: The bodies as they were read; None: those of the messages that have a place.
        """
        if messages is None:
            messages = {
                message.message_id: snapshot
                for message in session.messages
                if message.sequence is not None and (snapshot := snapshot_of(message)) is not None
            }
        return cls(
            session.version,
            {name: getattr(session, name) for name in HEADER_FIELDS},
            copy_json(session.metadata),
            messages,
            {used.usage_id: used.model_copy() for used in session.usage},
        )

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def to_json(self, session: SessionData) -> dict[str, Any]:
        """Return this as JSON, without what is the same in the copy."""
        now = {message.message_id: snapshot_of(message) for message in session.messages}
        return {
            "version": self.version,
            "header": dict(self.header),
            "metadata": copy_json(self.metadata),
            "messages": [
                [message_id, None if now.get(message_id) == snapshot else body_in(snapshot)]
                for message_id, snapshot in self.messages.items()
            ],
            "usage": [used.model_dump(mode="json") for used in self.usage.values()],
        }

    @classmethod
    def from_json(cls, session: SessionData, fields: Mapping[str, Any]) -> Self:
        """Return the baseline whose :meth:`to_json` for an equal copy this is."""
        now = {message.message_id: message for message in session.messages}
        return cls(
            fields["version"],
            fields["header"],
            fields["metadata"],
            {
                message_id: snapshot_of_body(body_of(now[message_id]) if body is None else body)
                for message_id, body in fields["messages"]
            },
            {used["usage_id"]: Usage.model_validate(used) for used in fields["usage"]},
        )


@dataclass(frozen=True, slots=True)
class MessageChange:
    """A message that is new or was changed."""

    index: int
    """Its place in the caller's list."""
    message_id: str
    body: Body
    before: Body | None
    """The body that the ledger holds; None: the message is new."""


@dataclass(frozen=True, slots=True)
class SessionChanges:
    """All that a caller changed in its copy."""

    header: dict[str, Any]
    messages: list[MessageChange]
    usage: list[Usage]


def changes_of(session: SessionData, baseline: Baseline) -> SessionChanges:
    """Return what the caller changed since the baseline.

    Raises:
        InvalidArgument: The list of messages was reordered or shortened, or something was inserted among stored ones;
            or recorded usage was changed.
        MessageIdConflict: The list has a message twice, with two bodies.
    """
    ids = [message.message_id for message in session.messages]
    _check_order(ids, list(baseline.messages))
    if len(set(ids)) < len(ids):
        _check_repeated(session)
    header = {
        name: _change(before, after)
        for name, before in baseline.header.items()
        if (after := getattr(session, name)) != before
    }
    if metadata := changed_keys(baseline.metadata, session.metadata):
        header["metadata"] = metadata

    changed: dict[str, MessageChange] = {}
    for index, message in enumerate(session.messages):
        before = baseline.messages.get(message.message_id)
        if (before is not None and before == snapshot_of(message)) or message.message_id in changed:
            continue
        body, stored = body_of(message), None if before is None else body_in(before)
        if stored is None or not same_json(stored, body):
            changed[message.message_id] = MessageChange(index, message.message_id, body, stored)
    return SessionChanges(header, [*changed.values()], _new_usage(session.usage, baseline))


def _new_usage(entries: Sequence[Usage], baseline: Baseline) -> list[Usage]:
    for index, used in enumerate(entries):
        if used != baseline.usage.get(used.usage_id, used):
            raise InvalidArgument(
                f"usage {index} is recorded and was changed",
                detail={"argument": "usage", "index": index},
                hint="Nothing was stored. Append another Usage to the list",
            )
    return [used.model_copy() for used in entries if used.usage_id not in baseline.usage]


def _check_order(ids: Sequence[str], stored: Sequence[str]) -> None:
    """Refuse a list that does not begin with the stored messages of the copy, in their order."""
    if ids[: len(stored)] == stored:
        return
    index = next(i for i, message_id in enumerate(stored) if ids[i : i + 1] != [message_id])
    if stored[index] in ids:
        problem = f'message {index}: "{ids[index]}" stands in front of stored messages'
        hint = "New messages go to the end of the list; the order of stored ones cannot change"
    else:
        problem = f'message {index}: "{stored[index]}" is stored, but no longer in the list'
        hint = "Remove stored messages with truncate_session, then load the session again"
    raise InvalidArgument(problem, detail={"argument": "messages", "index": index}, hint=f"Nothing was stored. {hint}")


def _check_repeated(session: SessionData) -> None:
    """Refuse a list with two bodies under one id: nobody knows which one is meant."""
    bodies: dict[str, Body] = {}
    for index, message in enumerate(session.messages):
        if not same_json(bodies.setdefault(message.message_id, body := body_of(message)), body):
            raise id_conflict(index, message.message_id, "is that of another message in the list, with another body")


def id_conflict(index: int, message_id: str, problem: str) -> MessageIdConflict:
    """Return the error for an id that stands for two bodies; ``index`` is the message's place in the caller's list."""
    return MessageIdConflict(
        f'message {index}: message_id "{message_id}" {problem}',
        detail={"index": index, "field": "message_id", "message_id": message_id},
        hint="Nothing was stored. Use a new id for a new message; change the one that is in the list to change it.",
    )


def amendment_of(message_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what turns one body of a message into another, as ``save_session`` takes it; {} when they are equal."""
    fields = changed_keys(before, after)
    changed: dict[str, Any] = {}
    if added := _added_calls(before.get("tool_calls") or [], after.get("tool_calls") or []):
        # Only what was added, not the whole list: others may add calls of theirs at the same time.
        del fields["tool_calls"]
        changed["add_tool_calls"] = added
    metadata = before.get("metadata", {}), after.get("metadata")
    if "metadata" in fields and isinstance(metadata[1], dict) and any(metadata):
        # Key by key, for the same reason.
        del fields["metadata"]
        changed["metadata"] = changed_keys(metadata[0], metadata[1])
    if fields:
        changed["fields"] = fields
    return {"message_id": message_id, **changed} if changed else {}


def _added_calls(before: list[Any], after: list[Any]) -> list[Any]:
    """Return the tool calls at the end of ``after``; [] when the list was changed in another way too.

    Also [] when an id comes twice: the ledger adds one call for each id.
    """
    if not isinstance(after, list) or not same_json(before, after[: len(before)]):
        return []
    ids = [call.get("id") if isinstance(call, dict) else None for call in after]
    repeated = any(call_id in ids[:place] for place, call_id in enumerate(ids))
    return [] if repeated else after[len(before) :]


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """Return the change of each key whose value is not the same in both."""
    missing = object()
    changed = {}
    for key in before.keys() | after.keys():
        if not same_json(before.get(key, missing), after.get(key, missing)):
            ends = (("from", before.get(key, missing)), ("to", after.get(key, missing)))
            changed[key] = {end: value for end, value in ends if value is not missing}
    return changed


def _change(before: Any, after: Any) -> Change:
    return {end: value for end, value in (("from", before), ("to", after)) if value is not None}
