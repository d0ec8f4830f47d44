"""G10: whatever is handed to the client is stored and read back, or refused by an error of ours.

A TypeError is right too, where Python itself raises it for an argument of a wrong type.

The calls are made up from the signatures of :class:`ChatLedger`, so a new method is tried too.
"""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from chatledger import (
    ChatLedger,
    ChatLedgerError,
    ChatMessage,
    ChatSession,
    InvalidArgument,
    InvalidMessage,
    SessionEvent,
    Usage,
)
from chatledger.postgres.encoding import clean_text
from tests.helpers.following import followers_of
from tests.helpers.openai_server import chunk
from tests.helpers.properties import examples
from tests.helpers.sql import (
    all_is_readable,
    assistant,
    bodies,
    call,
    everything,
    new_session,
    tool,
    user_json,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


circle: dict[str, Any] = {}
circle["circle"] = circle

any_text = (
    st.sampled_from(
        [
            "",
            "s1",
            "u1",
            "m0",
            "m1",
            "c1",
            "use1",
            "x" * 255,
            "x" * 256,
            "\U0001f680" * 255,
            "a\0b",
            "\ud83d",
        ]
    )
    | st.text(st.characters(), max_size=6)
    | st.just(10_000).map("x".__mul__)
)
no_json = st.sampled_from([float("nan"), float("inf"), datetime(2026, 1, 1, tzinfo=UTC), {1}, b"x", object, circle, 1j])
numbers = st.sampled_from(
    [0, -1, 1, 7.0, 7.5, -0.0, 1e23, 1e300, 5e-324, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63) - 1]
) | st.sampled_from([400, 999, 1001]).map((10).__pow__)
scalars = st.none() | st.booleans() | numbers | any_text
any_json = st.recursive(
    scalars | no_json | st.sampled_from([5, 90, 101, 250, 900, 5000]).map(deep),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
any_object = st.dictionaries(any_text | st.integers(0, 3), any_json, max_size=3)
roles = st.sampled_from(["user", "assistant", "tool", "function", "system", "developer"])
tool_calls = st.fixed_dictionaries({"id": any_text, "function": st.fixed_dictionaries({"name": any_text})}) | any_object
fields: dict[str, st.SearchStrategy[Any]] = {
    "message_id": any_text,
    "content": scalars | st.lists(any_object, max_size=2),
    "tool_call_id": any_text,
    "tool_calls": st.none() | st.lists(tool_calls, max_size=2),
    "metadata": st.none() | any_object,
    "duration_ms": numbers,
    "name": any_text,
}
mappings = st.builds(
    lambda body, more: more | body, st.fixed_dictionaries({"role": roles}, optional=fields), any_object
)
models = st.builds(  # not validated: somebody assigned to the fields
    lambda body, more: ChatMessage.model_construct(None, **({"message_id": "new"} | body), **more),
    st.fixed_dictionaries({"role": roles}, optional=fields),
    st.dictionaries(st.sampled_from(["audio", "x"]), any_json, max_size=1),
)
messages = mappings | models | any_json
integers = st.none() | st.integers(-2, 5) | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**70)])
wrong: st.SearchStrategy[Any] = st.sampled_from([7, 7.5, b"s1", ["s1"], {"s1": 1}, object(), float("nan")])

BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "session_id": st.just("s1") | any_text,
    "user_id": st.none() | st.just("u1") | any_text,
    "message_id": st.sampled_from(["m0", "m1"]) | any_text,
    "messages": st.lists(messages, max_size=3) | any_json,
    "metadata": st.none() | any_object,
    "patch": any_object | mappings,
    "tool_call": tool_calls,
    "usage": st.builds(Usage.model_construct, prompt_tokens=numbers, completion_tokens=numbers, total_tokens=numbers),
    "older_than": st.sampled_from(
        [timedelta(0), timedelta.max, timedelta.min, timedelta(days=-1), timedelta(days=365_001)]
    ),
    "only_if_empty": st.booleans(),
    "pinned": st.none() | st.booleans(),
}
for number in ("after", "before", "limit", "last", "at_sequence", "from_sequence", "expected_sequence"):
    BY_NAME[number] = integers
BY_NAME["fence"] = BY_NAME["expected_version"] = st.none() | integers

METHODS = {
    name: inspect.signature(method).parameters
    for name, method in inspect.getmembers(ChatLedger, inspect.iscoroutinefunction)
    if not name.startswith("_") and name not in ("open", "close", "save_session")
}


def arguments(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments by name: mostly such as it takes, now and then of another type altogether."""
    return st.fixed_dictionaries(
        {
            name: BY_NAME.get(name, st.none() | any_text) | (BY_NAME["usage"] if name == "usage" else wrong)
            for name in METHODS[method]
            if name != "self"
        }
    )


@pytest.fixture
async def stocked(connection: Connection) -> Connection:
    """A connection to a ledger with some of everything."""
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1")])
    await connection.execute("select chatledger.record_usage('s1', 'use1', 1, 2)")
    return connection


@pytest.mark.parametrize("method", METHODS)
@examples
@given(data=st.data())
async def test_g10_any_arguments_are_taken_or_refused(stocked: Connection, method: str, data: st.DataObject) -> None:
    given_arguments = data.draw(arguments(method))
    outer = stocked.transaction()
    await outer.start()
    try:
        before = await everything(stocked)
        try:
            async with stocked.transaction():
                await getattr(ChatLedger(stocked), method)(**given_arguments)
        except (ChatLedgerError, TypeError):
            assert await everything(stocked) == before
        else:
            await all_is_readable(stocked)
    finally:
        await outer.rollback()


# Sessions that are saved: new ones, and copies that were changed

CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "session_id": any_text.filter(lambda text: text != "s1") | wrong,  # with that, others' messages would come back too
    "user_id": BY_NAME["user_id"] | wrong,
    "title": scalars | no_json,
    "metadata": any_object | any_json,
    "pinned": st.booleans() | scalars,
    "status": any_text | wrong,
    "usage": st.lists(BY_NAME["usage"] | wrong, max_size=2) | wrong,
    "version": integers | wrong,
    "messages": st.lists(mappings | any_json, min_size=1, max_size=2) | scalars | wrong,
}
new_messages = st.lists(models, max_size=3, unique_by=lambda message: clean_text(message.message_id))
header_changes = st.fixed_dictionaries({}, optional=CHANGES)
message_changes = st.fixed_dictionaries(
    {},
    optional={name: values for name, values in fields.items() if name != "message_id"}
    | {"role": roles, "function_call": st.none() | any_object, "refusal": scalars},
)


def change(model: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(model, name, value)


@pytest.mark.parametrize("start", ["new", "loaded"])
@examples
@given(data=st.data())
async def test_g10_any_session_is_saved_and_loaded_equal_or_refused(
    stocked: Connection, start: str, data: st.DataObject
) -> None:
    new, amended, changes = data.draw(new_messages), data.draw(message_changes), data.draw(header_changes)
    ledger = ChatLedger(stocked)
    outer = stocked.transaction()
    await outer.start()
    try:
        session = ChatSession.new(user_id="u1") if start == "new" else await ledger.get_session("s1")
        assert session is not None
        if session.messages:
            change(session.messages[0], amended)
        session.messages += new
        change(session, changes)
        before = await everything(stocked)
        try:
            async with stocked.transaction():
                await ledger.save_session(session, fence=data.draw(st.none() | integers | wrong))
        except (ChatLedgerError, TypeError):
            assert await everything(stocked) == before
        else:
            await all_is_readable(stocked)
            if changes.keys().isdisjoint({"user_id", "version"}):  # which are not the copy's to change
                assert await ledger.get_session(session.session_id) == session
    finally:
        await outer.rollback()


@pytest.mark.parametrize("levels", [101, 250, 900, 5000])
async def test_g10_the_message_that_is_nested_too_deeply_is_named_when_it_is_saved(
    stocked: Connection, levels: int
) -> None:
    ledger = ChatLedger(stocked)
    session = await ledger.get_session("s1")
    assert session is not None
    session.messages += [ChatMessage(role="user"), ChatMessage(role="user", metadata={"x": deep(levels)})]
    with pytest.raises(InvalidMessage) as refused:
        await ledger.save_session(session)
    assert (refused.value.index, refused.value.field) == (4, "metadata")


@pytest.mark.parametrize(
    ("name", "value"), [("metadata", None), ("metadata", {"x": circle}), ("usage", 7), ("messages", ())]
)
async def test_what_a_session_cannot_have_is_named_when_it_is_saved(stocked: Connection, name: str, value: Any) -> None:
    session = ChatSession.new()
    setattr(session, name, value)
    with pytest.raises(InvalidArgument, match=name):
        await ChatLedger(stocked).save_session(session)


@pytest.mark.parametrize(("name", "value"), [("title", ""), ("pinned", None), ("status", None)])
async def test_a_change_that_changes_nothing_is_taken_back_in_the_copy(
    stocked: Connection, name: str, value: Any
) -> None:
    ledger = ChatLedger(stocked)
    session = await ledger.save_session(ChatSession.new())
    setattr(session, name, value)
    assert await ledger.save_session(session) == await ledger.get_session(session.session_id)


# Streams and followers, which are no single calls

times = st.sampled_from([None, 0, 0.5, 7, 86_400, 86_401, -1, 1e300, float("inf"), float("nan"), 10**400, "7"]) | wrong
stream_arguments = st.fixed_dictionaries(
    {"session_id": BY_NAME["session_id"] | wrong},
    optional={
        "user_id": BY_NAME["user_id"] | wrong,
        "holder": st.none() | any_text | wrong,
        "ttl": times,
        "wait": times,
        "force": st.booleans() | wrong,
        "max_streams": integers | wrong,
        "flush_interval": times,
    },
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "content": scalars | any_json,
        "role": roles | scalars,
        "refusal": scalars,
        "tool_calls": st.none() | st.lists(tool_calls, max_size=2) | any_json,
        "x": any_json,
    },
)
chunks = st.builds(
    lambda given, index, finish, usage: ChatCompletionChunk.construct(
        **chunk(given, finish, usage=usage) | ({"choices": index} if isinstance(index, list) else {})
    ),
    st.none() | deltas,
    st.none() | st.lists(any_json, max_size=1),
    st.sampled_from([None, "stop", "tool_calls", 7]),
    st.none() | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), scalars),
)
writes = (
    st.tuples(st.just("feed"), chunks | wrong)
    | st.tuples(st.just("append"), messages | st.lists(messages, max_size=2))
    | st.tuples(st.just("add_tool_call"), tool_calls | any_object)
)


@examples
@given(data=st.data())
async def test_g10_a_stream_with_any_arguments_is_had_or_refused(
    ledger: ChatLedger, connection: Connection, data: st.DataObject
) -> None:
    await connection.execute("truncate chatledger.sessions cascade")
    await new_session(connection, [user_json("m0")])
    given_arguments = data.draw(stream_arguments)
    before = await everything(connection)
    try:
        async with asyncio.timeout(20), ledger.stream(**given_arguments) as stream:
            await stream.feed(ChatCompletionChunk.model_validate(chunk({"content": "Hello"}, "stop")))
    except (ChatLedgerError, TypeError):
        assert await everything(connection) == before
    else:
        assert [body["content"] for body in await bodies(connection)] == ["hi", "Hello"]


@examples
@given(data=st.data())
async def test_g10_whatever_is_written_to_a_stream_is_stored_or_refused(
    ledger: ChatLedger, connection: Connection, data: st.DataObject
) -> None:
    await connection.execute("truncate chatledger.sessions cascade")
    await new_session(connection, [user_json("m0")])
    try:
        async with asyncio.timeout(20), ledger.stream("s1", flush_interval=1000) as stream:
            for write, value in data.draw(st.lists(writes, max_size=3)):
                await stream.flush()
                before = await bodies(connection)
                try:
                    await getattr(stream, write)(value)
                except (ChatLedgerError, TypeError):
                    assert await bodies(connection) == before
    except ChatLedgerError:
        pass  # what was fed is refused where it is saved
    assert await connection.fetch("select from chatledger.active_streams") == []
    await all_is_readable(connection)


@pytest.mark.parametrize("wait", [float("nan"), "7", timedelta(1)])
async def test_a_wait_that_is_no_time_is_refused_and_not_begun(
    ledger: ChatLedger, connection: Connection, wait: Any
) -> None:
    await new_session(connection)
    async with ledger.stream("s1"):
        with pytest.raises(InvalidArgument, match="wait"):
            async with asyncio.timeout(20), ledger.stream("s1", wait=wait):
                pass


@examples
@given(data=st.data())
async def test_g10_following_with_any_arguments_goes_on_or_is_refused(
    ledger: ChatLedger, connection: Connection, data: st.DataObject
) -> None:
    await connection.execute("truncate chatledger.sessions cascade")
    await new_session(connection, [user_json("m0"), user_json("m1")])
    session_id, user_id = data.draw(BY_NAME["session_id"] | wrong), data.draw(BY_NAME["user_id"] | wrong)
    after: Any = data.draw(integers | wrong)
    seen: list[SessionEvent] = []

    async def watch() -> None:
        async for event in ledger.follow(session_id, after=after, user_id=user_id):
            seen.append(event)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(20):
        while not (watching.done() or any(follower.wake._waiters for follower in followers_of(ledger))):
            await asyncio.sleep(0)
        await ledger.delete_session("s1")
        await asyncio.wait([watching])
    if watching.exception():
        assert isinstance(watching.exception(), ChatLedgerError | TypeError), watching.exception()
        assert seen == []
    else:
        expected = [("appended", sequence) for sequence in (0, 1) if sequence > after]
        assert [(event.kind, event.sequence) for event in seen] == [*expected, ("deleted", None)]
