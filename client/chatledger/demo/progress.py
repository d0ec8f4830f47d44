"""How far each writer is and what it was told: filled by the writers, read by the screen and by the check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from chatledger.demo.batches import Writer

State = Literal["waiting", "writing", "killed", "retrying", "done", "failed"]


class Place(NamedTuple):
    """Where a message is, as its writer was told; ``appended`` is False when it was stored before."""

    message_id: str
    sequence: int
    appended: bool


@dataclass(slots=True)
class Progress:
    """How far a writer is."""

    writer: Writer
    state: State = "waiting"
    answers: list[list[Place]] = field(default_factory=list)
    """What it was told, an answer a batch, in order of time."""
    batches_done: int = 0
    """Of its batches; from zero again when it starts again."""
    killed: bool = False
    """It was killed on its way, and started again."""
    error: str | None = None

    def answered(self, places: list[Place]) -> None:
        """Note the answer to a batch."""
        self.answers.append(places)
        self.batches_done += 1

    @property
    def messages_done(self) -> int:
        """How many messages are in the batches that are done."""
        return sum(len(batch) for batch in self.writer.batches[: self.batches_done])

    @property
    def stored_before(self) -> int:
        """How many messages it sent that turned out to be stored."""
        return sum(not place.appended for places in self.answers for place in places)
