"""What calls of the ledger return about what they did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AppendReceipt:
    """Where a message is; ``appended`` is False when it was stored before."""

    message_id: str
    sequence: int
    created_at: datetime
    appended: bool


@dataclass(frozen=True, slots=True)
class AmendReceipt:
    """The session's version after an amendment; ``amended`` is False when the message already was like that."""

    message_id: str
    sequence: int
    version: int
    amended: bool


@dataclass(frozen=True, slots=True)
class ToolCallReceipt:
    """The message that holds a tool call; ``added`` is False when it was there before."""

    message_id: str
    sequence: int
    version: int
    added: bool


@dataclass(frozen=True, slots=True)
class TruncateReceipt:
    """How many messages went, and where the session goes on."""

    removed: int
    next_sequence: int
    version: int


@dataclass(frozen=True, slots=True)
class IntegrityProblem:
    """Stored data that breaks a guarantee."""

    session_id: str
    guarantee: str
    sequence: int | None
    problem: str
