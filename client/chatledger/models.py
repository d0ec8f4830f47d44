"""What is in the ledger, as pydantic models. Knows nothing of Postgres."""

from __future__ import annotations

import os
import time
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from chatledger import intent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openai.types.chat import ChatCompletionMessageParam

    from chatledger.openai_format import AnyMessage, Repair

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


def new_id() -> str:
    """Return a fresh id for a session or a message: a UUID of version 7.

    They sort by the time they were made, so that appends to a long session write to the end of its part of the index
    instead of all over it.
    """
    bits = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10))
    return str(UUID(int=bits & ~(0xF << 76 | 0b11 << 62) | 7 << 76 | 0b10 << 62))


class Usage(BaseModel):
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


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


class ChatSession(SessionHeader):
    """A session and its messages, in order: all of them, or the window that was asked for.

    A caller changes its copy as it likes and saves it with :meth:`ChatLedger.save_session`; the copy knows what was
    changed since it was loaded or saved, also after it went through JSON, and only that is saved. Messages are changed
    and appended in ``messages``; they are removed with :meth:`ChatLedger.truncate_session`.
    """

    messages: list[ChatMessage] = Field(default_factory=list)
    unsaved: dict[str, Any] | None = Field(default=None, repr=False)
    """In JSON only: what the changed fields were before."""
    _saved: intent.Saved = PrivateAttr(default_factory=intent.nothing_saved)

    @classmethod
    def new(
        cls,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Self:
        """Return a session that is not stored yet; its first save creates it."""
        now = datetime.now(UTC)
        return cls(
            session_id=session_id or new_id(),
            user_id=user_id,
            title=title,
            metadata=metadata or {},
            started_at=now,
            updated_at=now,
        )

    @property
    def saved_message_count(self) -> int:
        """How many messages the stored session has, as far as this copy knows."""
        return self.message_count

    def add_tool_call_to_current_turn(self, tool_call: dict[str, Any]) -> None:
        """Add a tool call to the last assistant message of the current turn, also past tool results.

        A user message is the boundary of a turn. A turn without an assistant message gets one, with empty content.
        """
        for message in reversed(self.messages):
            if message.role == "user":
                break
            if message.role == "assistant":
                message.tool_calls = [*(message.tool_calls or []), tool_call]
                return
        self.messages.append(ChatMessage(role="assistant", content="", tool_calls=[tool_call]))

    def to_openai_messages(
        self, *, repair: bool = True, on_repair: Callable[[Repair], None] | None = None
    ) -> list[ChatCompletionMessageParam]:
        """Return the messages as OpenAI's chat completions API takes them, whatever order the pieces were stored in.

        Consecutive assistant messages are merged; what the API would refuse is repaired: see
        :func:`chatledger.openai_format.to_openai_messages`.

        Args:
            repair: False: only merge.
            on_repair: Called with each repair, in the order of the history.
        """
        from chatledger.openai_format import to_openai_messages  # which imports this module

        return to_openai_messages(self.messages, repair=repair, on_repair=on_repair)

    @staticmethod
    def _merge_consecutive_assistant_messages(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        # Backends call it by this name.
        from chatledger.openai_format import merge_consecutive_assistant_messages

        return merge_consecutive_assistant_messages(messages)

    def model_post_init(self, context: Any, /) -> None:
        """Remember what is stored."""
        before, self.unsaved = self.unsaved or {}, None
        if isinstance(context, intent.Bodies):
            self._saved = intent.saved_as_read(self, context)
        elif self.version > 0:
            self._saved = intent.saved_but(self, before)
        else:
            intent.restore_sent(self._saved, before)

    @model_serializer(mode="wrap")
    def _with_unsaved(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        fields.pop("unsaved", None)
        if before := intent.unsaved(self, self._saved, new_id()):
            fields["unsaved"] = before
        return fields

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same; what each knows to be saved does not count."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __copy__(self) -> Self:
        copied = super().__copy__()
        # What one copy saves, the other has not saved; but usage that both have is counted once.
        self._name_usage()
        copied._saved = deepcopy(self._saved)
        copied.usage = self.usage.model_copy()
        copied.metadata = deepcopy(self.metadata)
        copied.messages = list(self.messages)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        self._name_usage()
        return super().__deepcopy__(memo)

    def _name_usage(self) -> None:
        intent.remember_usage(self._saved, intent.changes(self, self._saved, new_id()))


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
