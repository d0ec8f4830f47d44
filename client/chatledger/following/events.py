"""What happened to a session, as events; and how they are found in what changed since a version. Without I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from chatledger.models.header import SessionHeader
from chatledger.models.message import ChatMessage
from chatledger.postgres.rows import messages_of

if TYPE_CHECKING:
    from chatledger.postgres.rows import Changes

# What an append changes in a header, besides its own event.
_OF_MESSAGES = {"message_count", "next_sequence", "version", "updated_at"}


class SessionEvent(BaseModel):
    """What happened to a session, by ``kind``.

    - ``appended``: ``message`` comes after all that were yielded before.
    - ``amended``: ``message``, which was yielded before, has another body now.
    - ``truncated``: the messages from ``sequence`` on, as far as they were yielded before, were removed.
    - ``updated``: title, metadata, pin, status or usage changed.
    - ``deleted``: the session is gone. Nothing comes after this.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["appended", "amended", "truncated", "updated", "deleted"]
    sequence: int | None = None
    """The message's; of truncated, the first one that was removed."""
    message: ChatMessage | None = None
    session: SessionHeader
    """The session at that moment; of deleted, as it was last seen."""


def events_of(changes: Changes, known: SessionHeader, header: SessionHeader, position: int) -> Iterator[SessionEvent]:
    """Yield what changed for somebody who has seen all messages before ``position``.

    Args:
        changes: What changed since the known header's version.
        known: The header as it was seen last.
        header: The header that came with the changes.
        position: The first sequence that was not seen yet.
    """
    if changes.removed:
        # Whatever is removed goes with all that was behind it.
        yield SessionEvent(kind="truncated", sequence=min(changes.removed), session=header)
    for sequence, message in zip(changes.messages, messages_of(changes.messages.values()), strict=True):
        kind: Literal["amended", "appended"] = "amended" if sequence < position else "appended"
        yield SessionEvent(kind=kind, sequence=sequence, message=message, session=header)
    if known.model_dump(exclude=_OF_MESSAGES) != header.model_dump(exclude=_OF_MESSAGES):
        yield SessionEvent(kind="updated", session=header)


def is_same_session(known: SessionHeader, header: SessionHeader) -> bool:
    """Tell whether a header is of the known session: not of one created anew under its id, nor of an older backup."""
    return known.started_at == header.started_at and known.version <= header.version
