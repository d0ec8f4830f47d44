"""What writers and readers note of every call, and the rows that are stored at the end. Calls no ledger."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Outcome = Literal["acknowledged", "refused", "unknown"]
Kind = Literal[
    "append", "save", "amend", "add_tool_call", "update", "usage", "truncate", "delete", "fork", "read", "pages", "list"
]

BODY = ("role", "content", "tool_calls", "tool_call_id", "metadata")
"""The fields that the writers of these tests use."""


@dataclass(slots=True)
class Call:
    """One call of one writer or reader. Times are those of the machine's monotonic clock, the same in all processes.

    What ``sent`` holds, by key: ``messages``, the new messages; ``header``, what is to change in the session's header;
    ``usage``, pairs of id and tokens; ``message_id``, ``keys``, ``content``, ``expected_version`` of an amendment;
    ``tool_call``, with the ``message_id`` that a new message would get; ``from_sequence``; ``fork`` and ``at``, a
    fork's id and last sequence; ``user``, whose list, and ``limit``, the length of its pages.

    What ``answer`` holds: of an append or save, ``[message_id, sequence, appended]`` a message; of an amendment
    ``version`` and ``amended``; of a tool call ``message_id`` and ``sequence``; of a truncation ``next_sequence``; of
    an update of the header or of usage, ``version`` and ``header``; of a read, None for a session that is not there,
    else ``version``, ``header``, ``next_sequence`` and ``messages``: ``[sequence, message_id, amended_version,
    fingerprint]`` each; of a walk through the pages of a session, ``messages``; of one through a list, page by page,
    ``[session, version, header]`` each.
    """

    writer: str
    number: int
    kind: Kind
    session: str
    """Empty: a list's."""
    sent: Json
    start: int
    end: int | None = None
    """None: it never came back, since its process was killed."""
    outcome: Outcome = "unknown"
    answer: Any = None
    error: str | None = None
    """SQLSTATE, or the exception's name."""


@dataclass(slots=True)
class Row:
    """A stored message."""

    sequence: int
    message_id: str
    body: Json
    created_at: int
    amended_version: int | None = None
    removed: bool = False


@dataclass(slots=True)
class Stored:
    """What is stored of a session."""

    session: str = ""
    user: str = ""
    """Whose it is, or was before it was deleted."""
    rows: list[Row] = field(default_factory=list)
    next_sequence: int = 0
    version: int = 1
    updated_at: int = 0
    deleted: bool = False
    header: Json = field(default_factory=lambda: header_of(None, False, 0, {}))
    usage: dict[str, int] = field(default_factory=dict)
    forks: list[Stored] = field(default_factory=list)


class Recorder:
    """Notes the calls of one writer, a line of JSON when a call begins and one when it is answered."""

    def __init__(self, writer: str, write: Callable[[str], object]) -> None:
        self._writer = writer
        self._write = write
        self._numbers = itertools.count()

    def begin(self, kind: Kind, session: str, **sent: Any) -> Call:
        """Note a call that is about to be made."""
        call = Call(self._writer, next(self._numbers), kind, session, sent, time.monotonic_ns())
        self._write(json.dumps(asdict(call)))
        return call

    def end(self, call: Call, outcome: Outcome, answer: Any = None, error: str | None = None) -> None:
        """Note how it was answered."""
        call.end, call.outcome, call.answer, call.error = time.monotonic_ns(), outcome, answer, error
        told = {name: getattr(call, name) for name in ("writer", "number", "end", "outcome", "answer", "error")}
        self._write(json.dumps(told))


def calls_of(lines: Iterable[str]) -> list[Call]:
    """The calls that these lines tell of. A last line that a killed writer did not finish is not among them."""
    calls: dict[tuple[str, int], Call] = {}
    for line in lines:
        told = json.loads(line)
        key = (told["writer"], told["number"])
        if "start" in told:
            calls[key] = Call(**told)
        else:
            call = calls[key]
            call.end, call.outcome, call.answer, call.error = (
                told["end"], told["outcome"], told["answer"], told["error"],
            )  # fmt: skip
    return list(calls.values())


def header_of(title: str | None, pinned: bool, total_tokens: int, metadata: Json) -> Json:
    """A session's header, with each key of the metadata by itself: the writers use none twice."""
    return {"title": title, "pinned": pinned, "total_tokens": total_tokens, **metadata}


def body_of(message: Json) -> Json:
    """The body of a message, however it was read: what is null is as good as not there."""
    return {name: message[name] for name in BODY if message.get(name) is not None}


def fingerprint(message: Json) -> str:
    """What stands for a body in a read."""
    return hashlib.sha256(json.dumps(body_of(message), sort_keys=True).encode()).hexdigest()[:12]
