"""A message that grows while the chunks of a completion arrive. Without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatledger.models.header import Usage
from chatledger.models.ids import new_id

if TYPE_CHECKING:  # importing openai takes half a second
    from openai.types.chat import ChatCompletionChunk

INTERRUPTED = "interrupted"
"""Key of the metadata that a message has until its completion says that it is complete."""


class GrowingMessage:
    """An assistant message, accumulated by openai's own code from the first choice of a completion."""

    def __init__(self) -> None:
        from openai.lib.streaming.chat import ChatCompletionStreamState

        self.message_id = new_id()
        self.completion_id = ""
        self.complete = False
        """The completion gave a reason why it finished."""
        self.closed = False
        """Nothing more will come."""
        self.usage: Usage | None = None
        self._state = ChatCompletionStreamState()

    def takes(self, chunk: ChatCompletionChunk) -> bool:
        """Tell whether a chunk is one of this message's completion."""
        if chunk.id and self.completion_id and chunk.id != self.completion_id:
            return False
        # Some servers give each completion the same id.
        return not (self.complete and any(_says_something(choice.delta) for choice in chunk.choices))

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take in a chunk."""
        self.completion_id = self.completion_id or chunk.id
        self._state.handle_chunk(chunk)
        self.complete = self.complete or any(choice.finish_reason and choice.index == 0 for choice in chunk.choices)
        if chunk.usage is not None:
            self.usage = Usage.model_validate(chunk.usage)
            # Servers that count in every chunk have the last word in one without a choice, or in the last one.
            self.closed = not chunk.choices

    def body(self) -> dict[str, Any] | None:
        """Return the message as it is now, always with its metadata; None while it says nothing.

        A tool call is in it once it is complete: a later one began, or the completion finished. What was cut off in the
        middle of its arguments could not be executed.
        """
        choices = self._state.current_completion_snapshot.choices
        if not choices:
            return None
        fields = {key: value for key, value in choices[0].message.to_dict().items() if value is not None}
        fields.pop("role", None)  # some servers send it with each chunk
        fields.pop("parsed", None)
        calls: Any = fields.pop("tool_calls", [])
        if complete_calls := [_call(call) for call in (calls if self.complete else calls[:-1])]:
            fields["tool_calls"] = complete_calls
        if not self.complete and not any(fields.values()):
            return None
        return fields | {"metadata": {} if self.complete else {INTERRUPTED: True}}


def is_empty(chunk: ChatCompletionChunk) -> bool:
    """Tell whether a chunk is of no completion: what Azure sends before it, and about its filters."""
    return chunk.usage is None and not any(choice.delta for choice in chunk.choices)


def _says_something(delta: Any) -> bool:
    return delta is not None and any(value for key, value in delta if key != "role")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call without what openai's accumulation puts into it."""
    kept = {key: value for key, value in call.items() if key != "index"}
    if "function" in kept:
        kept["function"] = {key: value for key, value in kept["function"].items() if key != "parsed_arguments"}
    return kept
