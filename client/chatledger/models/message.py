"""A message of a session."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chatledger.models.ids import new_id

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ChatMessage(BaseModel):
    """A message in OpenAI's chat format, with an id of its own and its place in the session.

    Keys that are not fields (a provider's own) are kept and come back unchanged.
    """

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)  # errors end in logs

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
