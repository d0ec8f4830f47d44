"""Everything chatledger raises, one small tree under :class:`ChatLedgerError`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, ClassVar

import asyncpg


class ChatLedgerError(Exception):
    """Base of all errors of chatledger.

    Attributes:
        message: What was wrong.
        detail: The facts, for programs: ids, versions, sequences.
        hint: What to do, or None.
    """

    sqlstate: ClassVar[str | None] = None

    def __init__(self, message: str, *, detail: dict[str, Any] | None = None, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}. {hint}")
        self.message = message
        self.detail = detail or {}
        self.hint = hint


class SessionNotFound(ChatLedgerError, ValueError):
    """The session is missing, was deleted, or belongs to another user."""

    sqlstate = "CL001"


class SequenceConflict(ChatLedgerError):
    """Somebody appended since the caller looked; ``detail["next_sequence"]`` says where the session is now."""

    sqlstate = "CL002"


class MessageIdConflict(ChatLedgerError):
    """A message id came with another body than the one stored under it."""

    sqlstate = "CL003"


class AmendConflict(ChatLedgerError):
    """The message was amended since the caller read it."""

    sqlstate = "CL004"


class StaleFence(ChatLedgerError):
    """The writer's stream lease ran out or was taken over."""

    sqlstate = "CL005"


class StreamBusy(ChatLedgerError):
    """The session has a stream already; :attr:`holder` and :attr:`expires_at` say whose, and until when."""

    sqlstate = "CL006"

    @property
    def holder(self) -> str:
        """Who holds the lease."""
        return str(self.detail["holder"])

    @property
    def expires_at(self) -> datetime:
        """When the lease runs out, unless it is renewed, by the database's clock."""
        return datetime.fromisoformat(self.detail["expires_at"])


class InvalidMessage(ChatLedgerError, ValueError):
    """A message cannot be stored; :attr:`index` and :attr:`field` say which and why."""

    sqlstate = "CL007"

    @property
    def index(self) -> int | None:
        """Position of the message in its batch; None when it was not in one."""
        return self.detail.get("index")

    @property
    def field(self) -> str:
        """The field that is wrong; empty when it is the message as a whole."""
        return str(self.detail.get("field", ""))


class InvalidArgument(ChatLedgerError, ValueError):
    """An argument that no call can have."""

    sqlstate = "CL008"


class MessageNotFound(ChatLedgerError, ValueError):
    """The session has no such message."""

    sqlstate = "CL009"


class SessionIdConflict(ChatLedgerError):
    """The id for a new session is already used by another one."""

    sqlstate = "CL010"


class UsageConflict(ChatLedgerError):
    """A usage id came with other numbers than the ones recorded under it."""

    sqlstate = "CL011"


class TooManyStreams(ChatLedgerError):
    """The session's user has as many live streams as the caller allows."""

    sqlstate = "CL013"


class BatchTooLarge(ChatLedgerError, ValueError):
    """The batch has more messages than one call takes; ``detail["limit"]`` says how many."""

    sqlstate = "CL014"


class DatabaseUnavailable(ChatLedgerError):
    """Postgres could not be reached, or not kept, until the retry deadline.

    The call may have gone through. Making it again with the same ids is safe.
    """


class MigrationError(ChatLedgerError):
    """The database cannot be migrated as it is; nothing was changed."""

    sqlstate = "CL012"


_BY_SQLSTATE: dict[str, type[ChatLedgerError]] = {
    error.sqlstate: error for error in ChatLedgerError.__subclasses__() if error.sqlstate is not None
}


def from_postgres(error: asyncpg.PostgresError) -> ChatLedgerError | None:
    """Return the error that stands for an SQLSTATE of ours, or None for one of Postgres's own."""
    kind = _BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None:
        return None
    detail = getattr(error, "detail", None)
    return kind(str(error.message), detail=json.loads(detail) if detail else {}, hint=getattr(error, "hint", None))


def without_detail(error: Exception) -> str:
    """Return what an error says, without the DETAIL of one of Postgres's own, which may quote the row."""
    return str(error.args[0]) if isinstance(error, asyncpg.PostgresError) else str(error)


# The server, or the way to it, went away.
CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
    OSError,
)


def is_refusal(error: Exception) -> bool:
    """Tell whether a call failed by what Postgres answered, so that nothing of it was stored then."""
    if isinstance(error, ChatLedgerError):
        return error.sqlstate is not None
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, CONNECTION_LOST)
