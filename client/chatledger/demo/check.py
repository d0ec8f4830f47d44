"""Whether the ledger kept its word: what the writers sent and were told, against the stored rows. Pure functions.

Each but the first returns what is wrong, a line a problem; nothing, when all is well. ``stored`` is in the order in
which it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from chatledger.demo.batches import Writer
from chatledger.demo.progress import Place
from chatledger.models.bodies import PLACE_FIELDS
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import IntegrityProblem


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the ledger promises, what was seen of it, and what was not as promised."""

    claim: str
    fact: str
    problems: list[str]


def findings(
    writers: Sequence[Writer],
    answers: Sequence[Sequence[Place]],
    stored: Sequence[ChatMessage],
    verified: Sequence[IntegrityProblem],
) -> list[Finding]:
    """Return the whole check; ``verified`` is what the database's own check found."""
    sent = sum(len(writer.messages) for writer in writers)
    batches = sum(len(writer.batches) for writer in writers)
    again = sum(not place.appended for answer in answers for place in answer)
    return [
        Finding(
            "nothing lost",
            f"{sent} messages sent, {len(stored)} stored, where their writers were told",
            nothing_lost(writers, stored) + told_right(answers, stored),
        ),
        Finding(
            "nothing twice",
            f"{again} were stored already when they were sent again",
            nothing_twice(writers, answers, stored),
        ),
        Finding("no gap", f"sequences 0 to {len(stored) - 1}", no_gap(stored)),
        Finding(
            "batches whole",
            f"each of the {batches} in one piece, under one timestamp",
            batches_whole(writers, stored),
        ),
        Finding("in order", "the batches of every writer, as it sent them", batches_in_order(writers, stored)),
        Finding(
            "verified",
            "verify_session, the database's own check, agrees",
            [f"{problem.guarantee}: {problem.problem}" for problem in verified],
        ),
    ]


def nothing_lost(writers: Sequence[Writer], stored: Sequence[ChatMessage]) -> list[str]:
    """Every message that a writer sent is stored, as it was sent."""
    by_id = {message.message_id: message for message in stored}
    problems = []
    for sent in (message for writer in writers for message in writer.messages):
        found = by_id.get(sent["message_id"])
        if found is None:
            problems.append(f"{sent['message_id']} is missing")
        elif _body(found) != _body(ChatMessage.model_validate(sent)):
            problems.append(f"{sent['message_id']} is not as it was sent")
    return problems


def told_right(answers: Sequence[Sequence[Place]], stored: Sequence[ChatMessage]) -> list[str]:
    """Every message is where its writer was told, each time that it was told."""
    places = {message.message_id: message.sequence for message in stored}
    return [
        f"{place.message_id} is at {places.get(place.message_id)}, not at {place.sequence} as its writer was told"
        for answer in answers
        for place in answer
        if places.get(place.message_id) != place.sequence
    ]


def nothing_twice(
    writers: Sequence[Writer], answers: Sequence[Sequence[Place]], stored: Sequence[ChatMessage]
) -> list[str]:
    """No message is stored twice, or was said to be; and none is stored that nobody sent."""
    sent = {message["message_id"] for writer in writers for message in writer.messages}
    rows = Counter(message.message_id for message in stored)
    appended = Counter(place.message_id for answer in answers for place in answer if place.appended)
    return [
        *(f"{message_id} is stored {count} times" for message_id, count in rows.items() if count > 1),
        *(f"{message_id} was appended {count} times" for message_id, count in appended.items() if count > 1),
        *(f"{message_id} was sent by nobody" for message_id in rows if message_id not in sent),
    ]


def no_gap(stored: Sequence[ChatMessage]) -> list[str]:
    """The sequences are 0, 1, 2, …: none missing, none more than once."""
    return [
        f"{message.sequence} stands where {expected} should be"
        for expected, message in enumerate(stored)
        if message.sequence != expected
    ]


def batches_whole(writers: Sequence[Writer], stored: Sequence[ChatMessage]) -> list[str]:
    """Every batch is there whole, its messages one after the other, under one timestamp of their own."""
    batch_of = _batch_of(writers)
    # Each run of rows with one timestamp must be one batch, complete and in its order.
    runs = [
        list(run) for _, run in groupby(stored, key=lambda message: (message.created_at, _owner(message, batch_of)))
    ]
    found = {tuple(message.message_id for message in run) for run in runs}
    return [
        f"batch {number} of {writer.name} is torn"
        for writer in writers
        for number, batch in enumerate(writer.batches)
        if tuple(message["message_id"] for message in batch) not in found
    ]


def batches_in_order(writers: Sequence[Writer], stored: Sequence[ChatMessage]) -> list[str]:
    """The batches of every writer are in the order in which it sent them."""
    batch_of = _batch_of(writers)
    problems = []
    for writer in writers:
        numbers = [batch_of[m.message_id][1] for m in stored if _owner(m, batch_of)[0] == writer.name]
        problems += [
            f"batch {later} of {writer.name} comes before its batch {earlier}"
            for later, earlier in pairwise(numbers)
            if later > earlier
        ]
    return problems


def _body(message: ChatMessage) -> dict[str, object]:
    return message.model_dump(exclude=set(PLACE_FIELDS))


def _batch_of(writers: Sequence[Writer]) -> dict[str, tuple[str, int]]:
    return {
        message["message_id"]: (writer.name, number)
        for writer in writers
        for number, batch in enumerate(writer.batches)
        for message in batch
    }


def _owner(message: ChatMessage, batch_of: dict[str, tuple[str, int]]) -> tuple[str, int]:
    return batch_of.get(message.message_id, ("", -1))
