"""A session without its messages, and the tokens that it used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from chatledger.models.ids import new_id


class UsageTotals(BaseModel):
    """How many tokens a session used in all."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0


class Usage(UsageTotals):
    """The tokens of one completion, recorded exactly once for its ``usage_id``. Keys that are not fields are kept.

    OpenAI's ``CompletionUsage`` is taken as it is, object or dict: ``prompt_tokens_details.cached_tokens`` becomes
    ``cache_read_tokens``, ``completion_tokens_details.reasoning_tokens`` becomes ``reasoning_tokens``. Without
    ``total_tokens`` the total is the sum of prompt and completion.

    Two are equal when all but their ids is.
    """

    model_config = ConfigDict(extra="allow")

    usage_id: str = Field(default_factory=new_id)
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_provider(cls, given: Any) -> Any:
        if isinstance(given, BaseModel) and not isinstance(given, cls):
            given = given.model_dump(exclude_none=True)
        if not isinstance(given, Mapping):
            return given
        fields = {key: value for key, value in given.items() if value is not None or key == "model"}
        for name, details, key in (
            ("cache_read_tokens", "prompt_tokens_details", "cached_tokens"),
            ("reasoning_tokens", "completion_tokens_details", "reasoning_tokens"),
        ):
            if name not in fields and isinstance(fields.get(details), Mapping) and fields[details].get(key):
                fields[name] = fields[details][key]
        counts = fields.get("prompt_tokens", 0), fields.get("completion_tokens", 0)
        if "total_tokens" not in fields and all(isinstance(count, int) for count in counts):
            fields["total_tokens"] = sum(counts)
        return fields

    def __eq__(self, other: object) -> bool:
        """Tell whether both are the same use of tokens, under whatever id."""
        if not isinstance(other, Usage):
            return NotImplemented
        return self.__dict__ | {"usage_id": None} == other.__dict__ | {"usage_id": None} and (
            self.__pydantic_extra__ == other.__pydantic_extra__
        )


class SessionHeader(BaseModel):
    """A session without its messages."""

    model_config = ConfigDict(hide_input_in_errors=True)

    session_id: str
    user_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    pinned: bool = False
    status: str = "active"
    total_usage: UsageTotals = Field(default_factory=UsageTotals)
    """What was recorded, added up."""
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
