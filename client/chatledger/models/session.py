"""A session and its messages, as a caller holds and changes them."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from chatledger.models import changes
from chatledger.models.header import SessionHeader
from chatledger.models.message import ChatMessage, new_id
from chatledger.models.openai_format import merge_consecutive_assistant_messages, to_openai_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openai.types.chat import ChatCompletionMessageParam

    from chatledger.models.openai_format import AnyMessage, HistoryRepair


class ChatSession(SessionHeader):
    """A session and its messages, in order: all of them, or the window that was asked for.

    A caller changes its copy as it likes and saves it with :meth:`ChatLedger.save_session`; the copy knows what was
    changed since it was loaded or saved, also after it went through JSON, and only that is saved. Messages are changed
    and appended in ``messages``; they are removed with :meth:`ChatLedger.truncate_session`.
    """

    messages: list[ChatMessage] = Field(default_factory=list)
    unsaved: dict[str, Any] | None = Field(default=None, repr=False)
    """In JSON only: what the changed fields were before."""
    _saved: changes.Saved = PrivateAttr(default_factory=changes.nothing_saved)

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
        self, *, repair: bool = True, on_repair: Callable[[HistoryRepair], None] | None = None
    ) -> list[ChatCompletionMessageParam]:
        """Return the messages as OpenAI's chat completions API takes them, whatever order the pieces were stored in.

        Consecutive assistant messages are merged; what the API would refuse is repaired: see
        :func:`chatledger.openai_format.to_openai_messages`.

        Args:
            repair: False: only merge.
            on_repair: Called with each repair, in the order of the history.
        """
        return to_openai_messages(self.messages, repair=repair, on_repair=on_repair)

    @staticmethod
    def _merge_consecutive_assistant_messages(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        # Backends call it by this name.
        return merge_consecutive_assistant_messages(messages)

    def model_post_init(self, context: Any, /) -> None:
        """Remember what is stored."""
        before, self.unsaved = self.unsaved or {}, None
        if isinstance(context, changes.Bodies):
            self._saved = changes.saved_as_read(self, context)
        elif self.version > 0:
            self._saved = changes.saved_but(self, before)
        else:
            changes.restore_sent(self._saved, before)

    @model_serializer(mode="wrap")
    def _with_unsaved(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        fields.pop("unsaved", None)
        if before := changes.unsaved(self, self._saved, new_id()):
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
        changes.remember_usage(self._saved, changes.changes(self, self._saved, new_id()))
