"""What is in the ledger, as pydantic models. Knows nothing of Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


def new_id() -> str:
    """Return a fresh id for a session or a message."""
    return str(uuid4())


class Usage(BaseModel):
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatMessage(BaseModel):
    """A message in OpenAI's chat format, with an id of its own and its place in the session.

    Keys that are not fields (a provider's own) are kept and come back unchanged.
    """

    model_config = ConfigDict(extra="allow")

    message_id: str = Field(default_factory=new_id)
    """Makes storing the message exactly once: set before the first try, the same on every retry."""
    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    duration_ms: int | None = None

    sequence: int | None = None
    """Its place in the session; None until it is stored."""
    created_at: datetime | None = None
    """When it was stored."""
    amended_version: int | None = None
    """Version of the session at which it was last amended; None: never."""


PLACE_FIELDS = frozenset({"sequence", "created_at", "amended_version"})
"""Fields of a message that the database sets."""


class SessionHeader(BaseModel):
    """A session without its messages."""

    session_id: str
    user_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    pinned: bool = False
    status: str = "active"
    usage: Usage = Field(default_factory=Usage)
    message_count: int = 0
    next_sequence: int = 0
    """Sequence of the next message."""
    version: int = 0
    """Counts every committed change of the session."""
    forked_from: str | None = None
    forked_at: int | None = None
    started_at: datetime = Field(validation_alias=AliasChoices("started_at", "created_at"))
    updated_at: datetime


class ChatSession(SessionHeader):
    """A session and its messages, in order: all of them, or the window that was asked for."""

    messages: list[ChatMessage] = Field(default_factory=list)


class SessionPage(BaseModel):
    """A page of sessions; ``cursor`` is for the next one, None after the last."""

    sessions: list[SessionHeader]
    cursor: str | None


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
class Truncation:
    """How many messages went, and where the session goes on."""

    removed: int
    next_sequence: int
    version: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Stored data that breaks a guarantee."""

    session_id: str
    guarantee: str
    sequence: int | None
    problem: str
