"""A session and its messages, as a caller holds and changes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from chatledger.models.bodies import Snapshot
from chatledger.models.changes import Baseline
from chatledger.models.data import SessionData
from chatledger.models.ids import new_id
from chatledger.models.message import ChatMessage
from chatledger.models.openai_format import (
    AnyMessage,
    HistoryRepair,
    merge_consecutive_assistant_messages,
    to_openai_messages,
)
from chatledger.models.saves import SaveQueue, SessionSave

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam


class StoredBodies(dict[str, Snapshot]):
    """The bodies of the messages that were read, by id: validation context for a session that was read."""


class ChatSession(SessionData):
    """A session and its messages, in order: all of them, or the window that was asked for.

    A caller changes its copy as it likes and saves it with :meth:`ChatLedger.save_session`, which sends only what was
    changed since the copy was loaded or saved. Messages are changed in ``messages`` and appended to its end; they are
    removed with :meth:`ChatLedger.truncate_session`. Tokens are added to ``usage``; ``total_usage`` is what is stored.

    JSON of a session holds its fields and nothing else, so it may be sent to a browser. A session that is made of such
    JSON counts as unchanged, whatever the session was that the JSON is of: :meth:`dump_copy` and :meth:`load_copy`
    move a copy to another process with its changes.
    """

    _baseline: Baseline = PrivateAttr(default_factory=Baseline)
    _saves: SaveQueue[SessionSave] = PrivateAttr(default_factory=SaveQueue)

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
        :func:`chatledger.models.openai_format.to_openai_messages`.

        Args:
            repair: False: only merge.
            on_repair: Called with each repair, in the order of the history.
        """
        return to_openai_messages(self.messages, repair=repair, on_repair=on_repair)

    @staticmethod
    def _merge_consecutive_assistant_messages(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        # Backends call it by this name.
        return merge_consecutive_assistant_messages(messages)

    def dump_copy(self) -> dict[str, Any]:
        """Return this copy as JSON values, with what it needs to know its changes; :meth:`load_copy` takes them.

        For other processes of the backend, not for browsers: the texts before the changes are in it.
        """
        return {
            "session": self.model_dump(mode="json"),
            "baseline": self._baseline.to_json(self),
            "in_doubt": None if self._saves.in_doubt is None else self._saves.in_doubt.to_json(),
        }

    @classmethod
    def load_copy(cls, dumped: Mapping[str, Any]) -> Self:
        """Return the copy that :meth:`dump_copy` dumped; saving it saves its changes, each once, whoever saves first.

        Raises:
            pydantic.ValidationError, KeyError: It is no such dump.
        """
        session = cls.model_validate(dumped["session"])
        session._baseline = Baseline.from_json(session, dumped["baseline"])
        if dumped["in_doubt"] is not None:
            session._saves.in_doubt = SessionSave.from_json(dumped["in_doubt"])
        return session

    def model_post_init(self, context: Any, /) -> None:
        """Remember what is stored."""
        if isinstance(context, StoredBodies) or self.version > 0:
            self._baseline = Baseline.of(self, context if isinstance(context, StoredBodies) else None)

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same; what each knows to be saved does not count."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._saves = deepcopy(self._saves)
        copied.metadata = deepcopy(self.metadata)
        copied.messages, copied.usage = list(self.messages), list(self.usage)
        return copied
