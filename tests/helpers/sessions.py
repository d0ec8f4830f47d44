"""A look at a session through a ledger."""

from __future__ import annotations

from chatledger import ChatLedger, ChatSession


async def load(ledger: ChatLedger, session_id: str, last: int | None = None) -> ChatSession:
    session = await ledger.get_session(session_id, last=last)
    assert session is not None
    return session
