"""What a copy of a session knows of its changes, and what becomes of it when they are saved; without a ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatledger import AmendConflict, ChatMessage, ChatSession, DatabaseUnavailable, InvalidArgument, Usage
from chatledger.models.bodies import body_in, body_of, snapshot_of, snapshot_of_body
from chatledger.models.changes import changes_of
from chatledger.models.header import SessionHeader
from chatledger.models.saves import Outcome, SaveQueue, SessionSave
from chatledger.saving import _prepare
from tests.helpers.properties import examples

NOW = datetime(2026, 1, 1, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(texts, v, max_size=2), max_leaves=5)
objects = st.dictionaries(texts, values, max_size=2)
calls = st.lists(st.fixed_dictionaries({"id": texts, "function": objects}), max_size=2)


@st.composite
def sessions(draw: st.DrawFn) -> ChatSession:
    """A copy that was loaded or not, changed, sent and saved, in any order; others may have written meanwhile."""
    session = ChatSession(session_id="s", version=draw(st.integers(0, 1)), started_at=NOW, updated_at=NOW)
    for step in draw(st.lists(st.sampled_from(["change", "append", "lose", "save", "save after others"]), max_size=8)):
        if step == "append":
            fields = {"role": "assistant", "content": draw(texts), "tool_calls": draw(st.none() | calls)}
            session.messages.append(ChatMessage.model_validate(fields | {"x": draw(values)}))
        elif step == "change":
            session.title, session.metadata[draw(texts)] = draw(st.none() | texts), draw(values)
            session.usage.append(Usage(total_tokens=draw(st.integers(0, 2))))
            for message in session.messages[:1]:
                message.metadata, message.content = draw(st.none() | objects), draw(st.none() | texts)
        elif step == "lose":
            session._saves.in_doubt = session._saves.in_doubt or _prepare(session, None)
        else:
            save(session, others=step == "save after others")
    return session


def save(session: ChatSession, others: bool = False) -> None:
    """Do what a ledger does, but for storing anything."""
    sent = session._saves.in_doubt or _prepare(session, None)
    version = session._baseline.version + 1 + others
    header = SessionHeader.model_validate(session.model_dump(exclude={"messages"}) | {"version": version})
    places: dict[str, tuple[int, datetime, int | None]] = {m.stored_id: (m.index, NOW, None) for m in sent.messages}
    session._baseline = sent.apply(session, session._baseline, Outcome(header, version - 1, places))
    session._saves.in_doubt = None


def known(session: ChatSession) -> Any:
    """All that a copy knows: what changed, against what, and what is in doubt."""
    return changes_of(session, session._baseline), session._baseline, session._saves.in_doubt


@examples
@given(session=sessions())
def test_a_copy_goes_through_json_with_its_changes(session: ChatSession) -> None:
    dumped = json.loads(json.dumps(session.dump_copy()))
    copy = ChatSession.load_copy(dumped)
    assert copy == session
    assert copy.model_dump() == session.model_dump()
    assert known(copy) == known(session)


@examples
@given(session=sessions())
def test_dumping_copying_comparing_and_preparing_change_nothing(session: ChatSession) -> None:
    before = deepcopy(session.model_dump()), known(session)
    for action in ACTIONS:
        action(session)
        assert (session.model_dump(), known(session)) == before


ACTIONS: list[Callable[[ChatSession], object]] = [
    lambda session: session.model_dump_json(),
    lambda session: session.dump_copy(),
    lambda session: session.model_copy(deep=True) == session,
    lambda session: session.model_copy() == session,
    lambda session: _prepare(session, None),
    lambda session: session.to_openai_messages(),
]


def test_json_of_a_session_has_its_fields_and_nothing_else() -> None:
    assert ChatSession.model_json_schema()["properties"].keys() == ChatSession.model_fields.keys()
    session = ChatSession.new(title="Before")
    session.messages = [ChatMessage(role="user", content="the old text")]
    save(session)
    session.messages[0].content, session.title = "the new text", "After"
    text = session.model_dump_json()
    assert json.loads(text).keys() == ChatSession.model_fields.keys()
    assert "the new text" in text
    assert "the old text" not in text
    assert "Before" not in text


@examples
@given(body=st.fixed_dictionaries({"role": st.just("user")}, optional={"content": texts | calls, "x": values}))
def test_a_snapshot_gives_the_body_back(body: dict[str, Any]) -> None:
    message = ChatMessage.model_validate(body)
    snapshot = snapshot_of(message)
    assert snapshot is not None
    assert snapshot == snapshot_of_body(body)
    assert body_in(snapshot) == body_of(message) == body


# The list of messages


def stored(*contents: str) -> ChatSession:
    session = ChatSession.new()
    session.messages = [ChatMessage(role="user", content=content) for content in contents]
    save(session)
    return session


@pytest.mark.parametrize(
    ("change", "index", "problem"),
    [
        (lambda m: m.insert(0, ChatMessage(role="user")), 0, "stands in front of stored messages"),
        (lambda m: m.insert(1, ChatMessage(role="user")), 1, "stands in front of stored messages"),
        (lambda m: m.pop(), 2, "no longer in the list"),
        (lambda m: m.pop(1), 1, "no longer in the list"),
        (lambda m: m.clear(), 0, "no longer in the list"),
        (lambda m: m.reverse(), 0, "stands in front of stored messages"),
        (lambda m: m.append(m.pop(0)), 0, "stands in front of stored messages"),
        (lambda m: m.__setitem__(-1, ChatMessage(role="user")), 2, "no longer in the list"),
        (lambda m: m.__setitem__(slice(0, 2), [ChatMessage(role="user")]), 0, "no longer in the list"),
        (lambda m: setattr(m[1], "message_id", "another"), 1, "no longer in the list"),
    ],
)
def test_a_list_that_does_not_begin_with_what_is_stored_is_refused(
    change: Callable[[list[ChatMessage]], object], index: int, problem: str
) -> None:
    session = stored("a", "b", "c")
    change(session.messages)
    with pytest.raises(InvalidArgument, match=rf"message {index}: .*{problem}") as refused:
        _prepare(session, None)
    assert refused.value.detail["index"] == index


# What becomes of a save: sent, and then applied, refused or in doubt


LOST, TIME_LIMIT, CONFLICT = (
    DatabaseUnavailable("gone"),
    asyncpg.QueryCanceledError("too long"),
    AmendConflict("theirs"),
)


@pytest.mark.parametrize(
    ("answers", "sent", "in_doubt", "raised"),
    [
        ([], "", None, None),  # never sent
        ([None], "a", None, None),  # applied
        ([CONFLICT], "a", None, CONFLICT),  # refused
        ([TIME_LIMIT], "a", None, TIME_LIMIT),
        ([LOST], "a", "a", LOST),  # in doubt
        ([LOST, LOST], "aa", "a", LOST),
        ([LOST, TIME_LIMIT], "aa", "a", TIME_LIMIT),  # nothing is known of the first try
        ([LOST, None, None], "aab", None, None),  # repeated and applied, then the next one
        ([LOST, CONFLICT, None], "aab", None, None),  # refused: the next one starts from what was known before
        ([LOST, CONFLICT, CONFLICT], "aab", None, CONFLICT),
        ([LOST, None, LOST], "aab", "b", LOST),
        ([LOST, LOST, None, None], "aaab", None, None),
    ],
)
async def test_what_becomes_of_a_save(
    answers: list[Exception | None], sent: str, in_doubt: str | None, raised: Exception | None
) -> None:
    queue: SaveQueue[str] = SaveQueue()
    prepared, calls, error = iter("abc"), "", None
    given = iter(answers)

    async def send(save: str) -> None:
        nonlocal calls
        calls += save
        if (answer := next(given)) is not None:
            raise answer

    while len(calls) < len(answers):
        error = None
        try:
            await queue.save(lambda: next(prepared), send)
        except Exception as failed:
            error = failed
    assert (calls, queue.in_doubt, error) == (sent, in_doubt, raised)


async def test_a_save_that_changes_nothing_is_not_sent() -> None:
    async def send(save: SessionSave) -> None:
        raise AssertionError("nothing to send")

    await SaveQueue[SessionSave]().save(lambda: None, send)
