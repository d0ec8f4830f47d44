"""What a chat backend calls: sessions held in memory, on a default ledger that the environment configures."""

from __future__ import annotations

import asyncio
from typing import Any

from chatledger.errors import SessionNotFound
from chatledger.ledger import ChatLedger
from chatledger.models.header import SessionPage
from chatledger.models.message import ChatMessage
from chatledger.models.session import ChatSession

# One for each event loop, since connections belong to their loop; and whether it is ours to close.
_ledgers: dict[asyncio.AbstractEventLoop, tuple[ChatLedger, bool]] = {}


def default_ledger() -> ChatLedger:
    """Return this event loop's default ledger, which opens on first use; configured by ``CHATLEDGER_…``."""
    loop = asyncio.get_running_loop()
    if loop not in _ledgers:
        # A ledger refers to its loop, so an entry never goes by itself.
        for ended in [other for other in _ledgers if other.is_closed()]:
            del _ledgers[ended]
        _ledgers[loop] = ChatLedger(), True
    return _ledgers[loop][0]


def set_default_ledger(ledger: ChatLedger) -> None:
    """Make a ledger this event loop's default, in tests for example. Closing it stays the caller's."""
    _ledgers[asyncio.get_running_loop()] = ledger, False


async def close_default_ledger() -> None:
    """Close this event loop's default ledger, if there is one; one that was set is only let go of.

    The next use opens a new one.
    """
    ledger, ours = _ledgers.pop(asyncio.get_running_loop(), (None, False))
    if ledger is not None and ours:
        await ledger.close()


async def create_chat_session(
    user_id: str | None = None,
    *,
    session_id: str | None = None,
    title: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> ChatSession:
    """Create and store a session without messages; return it.

    Args:
        user_id: Whose it is; None: nobody's.
        session_id: The caller's id for it; generated when None.
        title: What to call it.
        metadata: Anything of the caller's that JSON can express.

    Raises:
        SessionNotFound: The id belongs to another user, or to a session that was deleted.
        InvalidArgument: An id or the metadata cannot be stored.
    """
    session = ChatSession.new(user_id=user_id, session_id=session_id, title=title, metadata=metadata)
    return await default_ledger().save_session(session)


async def get_chat_session(session_id: str, user_id: str | None = None) -> ChatSession | None:
    """Return a session with its messages; None when it is missing or not this user's.

    Args:
        session_id: The session.
        user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

    Raises:
        InvalidArgument: An id is not a string.
    """
    return await default_ledger().get_session(session_id, user_id=user_id)


async def upsert_chat_session(session: ChatSession) -> ChatSession:
    """Save what was changed in this copy of a session; return it, with every message's place.

    Args:
        session: The copy. A new one is created.

    Raises:
        SessionNotFound, AmendConflict, MessageNotFound, InvalidMessage, MessageIdConflict, UsageConflict,
            InvalidArgument: As :meth:`ChatLedger.save_session`.
    """
    return await default_ledger().save_session(session)


async def append_and_save_message(
    session_id: str, message: ChatMessage, user_id: str | None = None
) -> ChatSession | None:
    """Append one message; return the session with it, or None when that message is stored already.

    None also when a first try, whose outcome was unknown, had stored it: :func:`get_chat_session` returns it then.

    Args:
        session_id: The session; it must exist.
        message: The message; its id makes storing it exactly once.
        user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

    Returns:
        The session as it is then.

    Raises:
        SessionNotFound: No such session. It is a ``ValueError`` too.
        MessageIdConflict: The id is stored with another body.
        InvalidMessage: The message cannot be stored.
    """
    ledger = default_ledger()
    [receipt] = await ledger.append_messages(session_id, [message], user_id=user_id)
    if not receipt.appended:
        return None
    session = await ledger.get_session(session_id, user_id=user_id)
    if session is None:  # deleted since
        raise SessionNotFound(f'session "{session_id}" not found', detail={"session_id": session_id})
    return session


async def update_session_title(
    session_id: str, title: str, user_id: str | None = None, *, only_if_empty: bool = False
) -> bool:
    """Set a session's title; return False when the session is missing or not this user's.

    Args:
        session_id: The session.
        title: The new title; an empty one takes it away.
        user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
        only_if_empty: Set it only while the session has none.

    Raises:
        InvalidArgument: The title or an id is not a string.
    """
    try:
        await default_ledger().update_session(session_id, user_id=user_id, title=title, only_if_empty=only_if_empty)
    except SessionNotFound:
        return False
    return True


async def delete_chat_session(session_id: str, user_id: str | None = None) -> bool:
    """Delete a session for good; return whether there was one to delete.

    Args:
        session_id: The session.
        user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

    Raises:
        InvalidArgument: An id is not a string.
    """
    return await default_ledger().delete_session(session_id, user_id=user_id)


async def get_user_sessions(
    user_id: str, *, limit: int = 50, cursor: str | None = None, title: str | None = None
) -> SessionPage:
    """Return a page of a user's sessions, without messages: pinned first, then the last changed first.

    Args:
        user_id: Whose.
        limit: How many, up to 1,000.
        cursor: The ``cursor`` of the page before.
        title: Only titles that contain this, in upper or lower case.

    Raises:
        InvalidArgument: The limit or the cursor is invalid.
    """
    return await default_ledger().list_sessions(user_id, limit=limit, cursor=cursor, title=title)
