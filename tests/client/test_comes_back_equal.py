"""Whatever is stored comes back equal, by whichever call: messages, amendments, headers, lines, pieces of an answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from chatledger import ChatLedger, ChatMessage, ChatSession, Usage, UsageTotals
from chatledger.models.bodies import PLACE_FIELDS
from chatledger.postgres.encoding import clean_text
from chatledger.transfer import _OWN_KEYS, export_sessions, import_lines
from tests.helpers import properties
from tests.helpers.openai_server import chunk
from tests.helpers.properties import examples, json_values, objects, text, without_booleans
from tests.helpers.sessions import load
from tests.helpers.sql import Json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

messages = properties.messages.filter(lambda message: message.keys().isdisjoint(PLACE_FIELDS))
batches = st.lists(messages, max_size=3)
tokens = st.builds(Usage, **dict.fromkeys(UsageTotals.model_fields, st.integers(0, 10**12)), model=st.none() | text)
# With keys that may be those of the metadata before, and then are replaced or removed.
metadata = st.dictionaries(st.sampled_from("ab") | text, json_values, max_size=3)
noted = messages | st.builds(lambda message, metadata: message | {"metadata": metadata}, messages, metadata)
headers: dict[str, st.SearchStrategy[Any]] = {
    "title": st.none() | text.filter(bool),
    "metadata": metadata,
    "pinned": st.booleans(),
    "status": text.filter(bool),
}

KEPT = {"message_id", "role", "tool_call_id", *PLACE_FIELDS}


def said(message: ChatMessage | Json) -> Any:
    """All of a message but its place."""
    model = message if isinstance(message, ChatMessage) else ChatMessage.model_validate(message)
    return without_booleans(model.model_dump(exclude=set(PLACE_FIELDS)))


def header_of(session: ChatSession) -> Any:
    """A copy of what a caller can change in a session, besides messages."""
    return without_booleans({name: getattr(session, name) for name in headers}) | {"usage": list(session.usage)}


def merged(before: Json | None, patch: Json) -> Json:
    return {key: value for key, value in ((before or {}) | patch).items() if key not in patch or value is not None}


@examples
@given(message=noted, patches=st.lists(noted, min_size=1, max_size=2))
async def test_any_amendment_comes_back(connection: Connection, message: Json, patches: list[Json]) -> None:
    ledger = ChatLedger(connection)
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [message])
    expected = message
    for body in patches:
        patch = {key: value for key, value in body.items() if key not in ("message_id", "role", "tool_call_id")}
        await ledger.amend_message(session.session_id, message["message_id"], patch)
        if patch.get("metadata") is not None:
            patch["metadata"] = merged(expected.get("metadata"), patch["metadata"])
        expected = merged(expected, patch)
    [loaded] = (await load(ledger, session.session_id)).messages
    assert said(loaded) == said(expected)


@examples
@given(data=st.data())
async def test_any_session_that_is_saved_comes_back(connection: Connection, data: st.DataObject) -> None:
    """Saved, changed from end to end, and saved again; each time by a copy that then equals what is loaded."""
    ledger = ChatLedger(connection)
    session = ChatSession.new(user_id=data.draw(st.none() | text.filter(bool)))
    for _ in range(3):
        for name, value in data.draw(st.fixed_dictionaries(headers)).items():
            setattr(session, name, value)
        session.usage.append(data.draw(tokens))
        session.messages = [
            ChatMessage.model_validate(data.draw(messages) | message.model_dump(include=KEPT))
            for message in session.messages
        ] + [ChatMessage.model_validate(message) for message in data.draw(batches)]
        expected = header_of(session), [said(message) for message in session.messages]
        await ledger.save_session(session)
        loaded = await load(ledger, session.session_id)
        assert loaded == session
        assert (header_of(loaded), [said(message) for message in loaded.messages]) == expected


@examples
@example(first={"metadata": {"a": 1, "b": 2}}, second={"metadata": {"a": None}})
@given(first=st.fixed_dictionaries({}, optional=headers), second=st.fixed_dictionaries({}, optional=headers))
async def test_any_header_that_is_updated_comes_back(connection: Connection, first: Json, second: Json) -> None:
    ledger = ChatLedger(connection)
    created = {key: value for key, value in first.items() if key != "pinned"}
    session_id = (await ledger.create_session(**created)).session_id
    expected: Json = {"title": None, "metadata": {}, "pinned": False, "status": "active"} | created
    await ledger.update_session(session_id, **second)
    expected |= {key: value for key, value in second.items() if value is not None}
    expected["metadata"] = merged(created.get("metadata"), second.get("metadata", {}))
    loaded = await load(ledger, session_id)
    assert header_of(loaded) == without_booleans(expected) | {"usage": []}


@examples
@given(batch=st.lists(messages, min_size=1, max_size=4), title=text.filter(bool), data=st.data())
async def test_any_fork_equals_what_it_was_forked_from(
    connection: Connection, batch: list[Json], title: str, data: st.DataObject
) -> None:
    ledger = ChatLedger(connection)
    session = await ledger.create_session(title=title, metadata=data.draw(objects))
    await ledger.append_messages(session.session_id, batch)
    at_sequence = data.draw(st.none() | st.integers(0, len(batch)))
    fork = await ledger.fork_session(session.session_id, at_sequence=at_sequence)
    assert (fork.title, fork.metadata) == (session.title, session.metadata)
    loaded = await load(ledger, fork.session_id)
    expected = batch if at_sequence is None else batch[: at_sequence + 1]
    assert [said(message) for message in loaded.messages] == [said(message) for message in expected]


@examples
@given(
    batch=batches,
    header=st.fixed_dictionaries({}, optional=headers),
    more=st.dictionaries(text.filter(lambda key: key not in _OWN_KEYS), json_values),
)
async def test_any_line_that_is_imported_is_exported_equal(
    connection: Connection, batch: list[Json], header: Json, more: Json
) -> None:
    ledger = ChatLedger(connection)
    line = more | {key: value for key, value in header.items() if key != "pinned" and value}
    line |= {"session_id": uuid4().hex, "messages": batch}
    report = await import_lines(ledger, [json.dumps(line).encode()])
    assert report.refused == []
    [exported] = [json.loads(line) async for line in export_sessions(ledger, [line["session_id"]])]
    assert without_booleans(exported) == without_booleans(line)
    again = exported | {"session_id": uuid4().hex}
    await import_lines(ledger, [json.dumps(again).encode()])
    assert [json.loads(line) async for line in export_sessions(ledger, [again["session_id"]])] == [again]


pieces = st.text(st.characters(), min_size=1, max_size=4)  # also half a character, and NUL


@examples
@example(answers=[["a\0", "\ud83d", "\ude80b"]], usage=Usage())
@given(answers=st.lists(st.lists(pieces, min_size=1, max_size=4) | messages, max_size=3), usage=tokens)
async def test_any_answer_that_is_streamed_comes_back(
    ledger: ChatLedger, answers: list[list[str] | Json], usage: Usage
) -> None:
    session = await ledger.create_session()
    expected: list[Any] = []
    streamed = 0
    async with ledger.stream(session.session_id, flush_interval=0) as stream:
        for answer in answers:
            if isinstance(answer, dict):
                await stream.append(answer)
                expected.append(said(answer))
                continue
            for piece in answer:
                await stream.feed(ChatCompletionChunk.model_validate(chunk({"content": piece})))
                await stream.flush()
            end = chunk({}, "stop"), chunk(None, usage=usage.model_dump(exclude={"usage_id"}))
            for last in end:
                await stream.feed(ChatCompletionChunk.model_validate(last))
            streamed += 1
            expected.append(clean_text("".join(answer)))
    loaded = await load(ledger, session.session_id)
    came = [
        said(message) if isinstance(wanted, dict) else message.content
        for message, wanted in zip(loaded.messages, expected, strict=True)
    ]
    assert came == expected
    assert loaded.total_usage.total_tokens == streamed * usage.total_tokens
