"""What a copy of a session knows of its changes, without a ledger."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatledger import ChatMessage, ChatSession
from chatledger.models import changes
from chatledger.models.header import SessionHeader
from chatledger.postgres.encoding import encode_changes
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
    for step in draw(st.lists(st.sampled_from(["change", "append", "send", "save", "save after others"]), max_size=8)):
        if step == "append":
            fields = {"role": "assistant", "content": draw(texts), "tool_calls": draw(st.none() | calls)}
            session.messages.append(ChatMessage.model_validate(fields | {"x": draw(values)}))
        elif step == "change":
            session.title, session.metadata[draw(texts)] = draw(st.none() | texts), draw(values)
            session.usage.total_tokens += draw(st.integers(0, 2))
            for message in session.messages[:1]:
                message.metadata, message.content = draw(st.none() | objects), draw(st.none() | texts)
        else:
            save(session, answered=step != "send", others=step == "save after others")
    return session


def save(session: ChatSession, answered: bool, others: bool) -> None:
    """Do what a ledger does, but for storing anything."""
    saved = session._saved
    intended = changes.changes(session, saved, f"usage {saved.version}")
    changes.remember_usage(saved, intended)
    encode_changes(intended.messages, saved.messages_sent)
    if answered:
        version = saved.version + 1 + others
        header = SessionHeader.model_validate(session.model_dump(exclude={"messages"}) | {"version": version})
        places: dict[str, tuple[int, datetime, int | None]] = {
            change.stored_id: (change.index, NOW, None) for change in intended.messages
        }
        changes.settle(session, saved, intended, changes.Outcome(header, version - 1, places))


def to_send(session: ChatSession) -> Any:
    intended = changes.changes(deepcopy(session), session._saved, "usage")
    messages = [(change.message_id, change.body, change.before) for change in intended.messages]
    return intended.header, messages, intended.usage, session._saved.messages_sent


@examples
@given(session=sessions())
def test_a_copy_goes_through_json_with_its_changes(session: ChatSession) -> None:
    copy = ChatSession.model_validate_json(session.model_dump_json())
    assert copy == session
    assert copy.model_dump() == session.model_dump()
    assert to_send(copy) == to_send(session)


@examples
@given(body=st.fixed_dictionaries({"role": st.just("user")}, optional={"content": texts | calls, "x": values}))
def test_a_frozen_body_is_thawed_as_it_was(body: dict[str, Any]) -> None:
    message = ChatMessage.model_validate(body)
    frozen = changes.frozen(message)
    assert frozen is not None
    assert frozen == changes.frozen_body(body)
    assert changes.thawed(frozen) == changes.body_of(message) == body
