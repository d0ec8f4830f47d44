"""The fields of a session with its messages."""

from __future__ import annotations

from pydantic import Field

from chatledger.models.header import SessionHeader, Usage
from chatledger.models.message import ChatMessage


class SessionData(SessionHeader):
    """A session's header, its messages in order, and the usage of tokens that was recorded."""

    messages: list[ChatMessage] = Field(default_factory=list)
    usage: list[Usage] = Field(default_factory=list)
    """Of a window (``last=``): only what this copy added."""
