"""Saves on their way: what was sent, what becomes of the caller's copy, and what to do while nobody knows.

A save is *sent*, and then *applied* (the answer came), *refused* (nothing was stored), or *in doubt*: the connection
was lost or the call was cancelled, so it may have been committed. A save in doubt is sent again, as it was, before the
next one: it changes nothing when it was committed, and what was changed since builds on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, Self, TypeVar

from chatledger.errors import ChatLedgerError, is_refusal
from chatledger.models.bodies import Body, body_of, copy_json, put_body, same_json, snapshot_of_body
from chatledger.models.changes import HEADER_FIELDS, Baseline, changed_keys
from chatledger.models.data import SessionData
from chatledger.models.header import SessionHeader, Usage
from chatledger.models.message import ChatMessage


class SaveArguments(NamedTuple):
    """The arguments of ``save_session``, encoded."""

    session_id: str
    user_id: str | None
    read_version: int
    header: str
    messages: Sequence[str]
    amendments: Sequence[str]
    usage: Sequence[str]
    fence: int | None


AnySave = TypeVar("AnySave")

_SET_BY_THE_DATABASE = (
    "session_id", "user_id", "total_usage", "message_count", "next_sequence", "started_at", "updated_at"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ``save_session`` answered."""

    session: SessionHeader
    version_before: int
    places: Mapping[str, tuple[int, datetime, int | None]]
    """Sequence, created_at and amended_version of each message that was sent, by its id."""


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message as it was sent."""

    index: int
    message_id: str
    body: Body
    """Id and body in the caller's copy."""
    stored_id: str
    stored: Body
    """Id and body in the ledger once this is saved: some characters cannot be stored."""
    is_new: bool


@dataclass(frozen=True, slots=True)
class SessionSave:
    """A copy's changes, encoded, and what they were made of: the caller may change the copy meanwhile."""

    arguments: SaveArguments
    header: Mapping[str, Any]
    metadata: Mapping[str, Any]
    messages: Sequence[SentMessage]
    usage: Mapping[str, Usage]
    """As the ledger holds it once this is saved, by its id in the caller's copy."""

    def apply(self, session: SessionData, baseline: Baseline, outcome: Outcome) -> Baseline:
        """Write the outcome into the copy; return what the ledger holds of the copy now."""
        self._apply_messages(session, outcome)
        messages = {**baseline.messages, **{sent.stored_id: snapshot_of_body(sent.stored) for sent in self.messages}}
        usage = {**baseline.usage, **{used.usage_id: used for used in self.usage.values()}}
        for index, used in enumerate(session.usage):
            if (recorded := self.usage.get(used.usage_id)) is not None and recorded.usage_id != used.usage_id:
                session.usage[index] = recorded.model_copy()
        # Recorded usage stays in the list, also when the caller put another list there.
        listed = {used.usage_id for used in session.usage}
        session.usage[:0] = [used.model_copy() for usage_id, used in usage.items() if usage_id not in listed]
        stored = outcome.session
        if stored.version < baseline.version:  # a later save of this copy was applied before
            return replace(baseline, messages=messages, usage=usage)

        # What the caller changed meanwhile builds on what was sent, not on what others made of that.
        header = {name: getattr(stored, name) for name in HEADER_FIELDS}
        for name, value in header.items():
            if getattr(session, name) == self.header[name]:
                setattr(session, name, value)
            else:
                header[name] = self.header[name]
        metadata = _merged(stored.metadata, session.metadata, self.metadata)
        merged = _merged(stored.metadata, self.metadata, session.metadata)
        session.metadata.clear()  # the same object stays, since callers may hold it
        session.metadata.update(merged)
        for name in _SET_BY_THE_DATABASE:
            setattr(session, name, getattr(stored, name))
        # If others wrote in between, keep the old version: this copy has not seen their changes.
        if outcome.version_before == session.version or session.version == 0:
            session.version = stored.version
        return Baseline(stored.version, header, metadata, messages, usage)

    def _apply_messages(self, session: SessionData, outcome: Outcome) -> None:
        by_id: dict[str, list[ChatMessage]] = {}
        if self.messages:
            for message in session.messages:
                by_id.setdefault(message.message_id, []).append(message)
        for sent in self.messages:
            for message in by_id.get(sent.message_id, ()):
                message.message_id = sent.stored_id
                if place := outcome.places.get(sent.stored_id):
                    message.sequence, message.created_at, message.amended_version = place
                if not same_json(sent.body, sent.stored) and same_json(sent.body, body_of(message)):
                    put_body(message, sent.stored)

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {
            "arguments": list(self.arguments),
            "header": dict(self.header),
            "metadata": copy_json(self.metadata),
            "messages": [asdict(sent) for sent in self.messages],
            "usage": {usage_id: used.model_dump(mode="json") for usage_id, used in self.usage.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the save whose :meth:`to_json` this is."""
        return cls(
            SaveArguments(*fields["arguments"]),
            fields["header"],
            fields["metadata"],
            [SentMessage(**sent) for sent in fields["messages"]],
            {usage_id: Usage.model_validate(used) for usage_id, used in fields["usage"].items()},
        )


def _merged(stored: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored metadata with what turns ``before`` into ``after``."""
    merged = dict(copy_json(stored))
    for key, change in changed_keys(before, after).items():
        if "to" in change:
            merged[key] = change["to"]
        else:
            merged.pop(key, None)
    return merged


class SaveQueue(Generic[AnySave]):
    """The saves of one copy of a session, or of one stream, one after the other.

    Attributes:
        in_doubt: The last save while its outcome is unknown. The next save repeats it first, because it may not have
            been committed.
    """

    def __init__(self, in_doubt: AnySave | None = None) -> None:
        self.in_doubt = in_doubt
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def turn(self) -> asyncio.Lock:
        """Return the lock under which saves are prepared and sent: each starts from what the last one did."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Lock()
        return self._turn[1]

    async def save(self, prepare: Callable[[], AnySave | None], send: Callable[[AnySave], Awaitable[None]]) -> None:
        """Send the save in doubt again, if there is one; then prepare and send the next one.

        Args:
            prepare: Makes a save of what changed since the last one was applied; None: nothing changed.
            send: Calls the database, and applies the outcome.
        """
        if self.in_doubt is not None:
            try:
                await self._send(self.in_doubt, send)
            except ChatLedgerError as error:
                if error.sqlstate is None:
                    raise
                # Refused: others changed the same since. The next save has these changes too, and meets that itself.
        if (save := prepare()) is not None:
            await self._send(save, send)

    async def _send(self, save: AnySave, send: Callable[[AnySave], Awaitable[None]]) -> None:
        is_repeated, self.in_doubt = save is self.in_doubt, save
        try:
            await send(save)
        except Exception as error:
            # What Postgres itself refuses, by a time limit say, leaves open what became of the first try.
            if is_refusal(error) and (isinstance(error, ChatLedgerError) or not is_repeated):
                self.in_doubt = None
            raise
        self.in_doubt = None

    def __getstate__(self) -> dict[str, Any]:
        return {"in_doubt": self.in_doubt, "_turn": None}

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(self.in_doubt)
