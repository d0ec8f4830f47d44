"""A session without its messages."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Usage(BaseModel):
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class SessionHeader(BaseModel):
    """A session without its messages."""

    model_config = ConfigDict(hide_input_in_errors=True)

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


class SessionPage(BaseModel):
    """A page of sessions; ``cursor`` is for the next one, None after the last."""

    sessions: list[SessionHeader]
    cursor: str | None
