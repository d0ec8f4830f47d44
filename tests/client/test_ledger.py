"""ChatLedger on a real database."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from chatledger import (
    AmendConflict,
    ChatLedger,
    ChatLedgerError,
    ChatMessage,
    InvalidArgument,
    InvalidMessage,
    MessageIdConflict,
    MessageNotFound,
    MigrationError,
    SequenceConflict,
    SessionIdConflict,
    SessionNotFound,
    Settings,
    StaleFence,
    Usage,
    UsageConflict,
    UsageTotals,
)
from tests.helpers.messages import user
from tests.helpers.sql import everything

CALL = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}


async def contents(ledger: ChatLedger, session_id: str) -> list[Any]:
    session = await ledger.get_session(session_id)
    assert session is not None
    return [message.content for message in session.messages]


# What goes in comes out


async def test_a_conversation_comes_back_as_it_went_in(ledger: ChatLedger) -> None:
    session = await ledger.create_session(user_id="u1", title="Trip", metadata={"tags": ["a"]})
    sent = [
        user("where to?", name="Ann"),
        ChatMessage(role="assistant", tool_calls=[CALL], metadata={"n": 1.5}, duration_ms=12),
        ChatMessage(role="tool", tool_call_id="call_1", content=[{"type": "text", "text": "Oslo"}]),
        ChatMessage.model_validate({"role": "assistant", "content": "", "reasoning_content": "hm", "audio": None}),
    ]
    receipts = await ledger.append_messages(session.session_id, sent)

    loaded = await ledger.get_session(session.session_id, user_id="u1")
    assert loaded is not None
    assert (loaded.title, loaded.metadata, loaded.message_count, loaded.next_sequence) == (
        "Trip",
        {"tags": ["a"]},
        4,
        4,
    )
    place = {"sequence", "created_at"}
    assert [m.model_dump(exclude=place) for m in loaded.messages] == [m.model_dump(exclude=place) for m in sent]
    assert [m.sequence for m in loaded.messages] == [r.sequence for r in receipts] == [0, 1, 2, 3]
    assert {m.created_at for m in loaded.messages} == {r.created_at for r in receipts} == {loaded.updated_at}


async def test_messages_may_be_mappings_in_openai_format(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [{"role": "user", "content": "hi", "x": 1}])
    [message] = await ledger.get_messages(session.session_id)
    assert message.model_extra == {"x": 1}


@pytest.mark.parametrize("text", ["a\0b", "lone \ud83d half", "both \0 \udc00"])
async def test_g10_what_postgres_cannot_store_is_replaced_visibly(ledger: ChatLedger, text: str) -> None:
    session = await ledger.create_session(user_id=text, title=text, metadata={text: text})
    message = user(text, message_id=text, metadata={text: [text]})
    await ledger.append_messages(session.session_id, [message], user_id=text)
    again = await ledger.append_messages(session.session_id, [message])

    loaded = await ledger.get_session(session.session_id, user_id=text)
    assert loaded is not None
    shown = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    [stored] = loaded.messages
    assert (stored.message_id, stored.content, stored.metadata) == (shown, shown, {shown: [shown]})
    assert (loaded.title, loaded.metadata) == (shown, {shown: shown})
    assert not again[0].appended


async def test_five_megabytes_of_text(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    text = "äöü – 漢字 🙂 " * 300_000
    await ledger.append_messages(session.session_id, [user(text)])
    assert await contents(ledger, session.session_id) == [text]


async def test_numbers_in_metadata(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    numbers = {"int": 1, "float": 1.0, "large": 2**70, "small": 5e-324, "huge": 1.5e300, "tenth": 0.1, "neg": -0.0}
    await ledger.append_messages(session.session_id, [user(metadata=numbers)])
    [message] = await ledger.get_messages(session.session_id)
    assert message.metadata == numbers


async def test_a_window_and_pages(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [user(str(n)) for n in range(20)])
    window = await ledger.get_session(session.session_id, last=3)
    assert window is not None
    assert [m.content for m in window.messages] == ["17", "18", "19"]
    assert window.message_count == 20
    older = await ledger.get_messages(session.session_id, before=17, limit=2)
    assert [m.content for m in older] == ["15", "16"]
    newer = await ledger.get_messages(session.session_id, after=17)
    assert [m.content for m in newer] == ["18", "19"]
    assert len(await ledger.get_messages(session.session_id, after=-1, limit=None)) == 20
    assert len(await ledger.get_messages(session.session_id, limit=None)) == 20


async def test_a_window_never_starts_inside_a_tool_group(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    calls = [{**CALL, "id": f"c{n}"} for n in range(40)]
    results = [ChatMessage(role="tool", tool_call_id=call["id"], content="ok") for call in calls]
    await ledger.append_messages(
        session.session_id, [user(), ChatMessage(role="assistant", tool_calls=calls), *results]
    )
    window = await ledger.get_session(session.session_id, last=5)
    assert window is not None
    assert [m.sequence for m in window.messages] == list(range(1, 42))


# Exactly once, whole, in order


async def test_g3_a_retry_returns_the_first_place(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    batch = [user("one"), user("two")]
    first = await ledger.append_messages(session.session_id, batch)
    await ledger.append_messages(session.session_id, [user("three")])
    again = await ledger.append_messages(session.session_id, batch)
    assert [(r.sequence, r.created_at) for r in again] == [(r.sequence, r.created_at) for r in first]
    assert [r.appended for r in again] == [False, False]
    assert await contents(ledger, session.session_id) == ["one", "two", "three"]


@pytest.mark.parametrize("amended", [True, False])
async def test_g3_a_loaded_message_is_the_one_that_was_stored_with_nulls(ledger: ChatLedger, amended: bool) -> None:
    session = await ledger.create_session()
    sent = {"message_id": "m", "role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
    await ledger.append_messages(session.session_id, [sent])
    loaded = await ledger.get_messages(session.session_id)
    if amended:
        await ledger.amend_message(session.session_id, "m", {"content": "found"})
    for batch in (loaded, [sent]):
        [receipt] = await ledger.append_messages(session.session_id, batch)
        assert (receipt.sequence, receipt.appended) == (0, False)


async def test_g3_the_same_id_with_another_body_is_refused_whole(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    message = user("one")
    await ledger.append_messages(session.session_id, [message])
    with pytest.raises(MessageIdConflict) as refused:
        await ledger.append_messages(session.session_id, [user("new"), user("other", message_id=message.message_id)])
    assert refused.value.detail["index"] == 1
    assert await contents(ledger, session.session_id) == ["one"]


async def test_expected_sequence_lets_one_of_twenty_win_and_its_retry_through(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    messages = [user(str(n)) for n in range(20)]

    async def append(message: ChatMessage) -> Any:
        try:
            return await ledger.append_messages(session.session_id, [message], expected_sequence=0)
        except SequenceConflict as conflict:
            return conflict

    answers = await asyncio.gather(*map(append, messages))
    [winner] = [n for n, answer in enumerate(answers) if isinstance(answer, list)]
    assert all(a.detail["next_sequence"] == 1 for n, a in enumerate(answers) if n != winner)
    [again] = await append(messages[winner])
    assert (again.sequence, again.appended) == (0, False)


async def test_nothing_is_appended_by_an_empty_batch(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    assert await ledger.append_messages(session.session_id, []) == []


# Changes


async def test_g4_an_amendment_of_what_somebody_amended_since_is_refused(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    message = user("one")
    await ledger.append_messages(session.session_id, [message])
    read = await ledger.get_session(session.session_id)
    assert read is not None
    first = await ledger.amend_message(
        session.session_id, message.message_id, {"content": "two"}, expected_version=read.version
    )
    with pytest.raises(AmendConflict) as refused:
        await ledger.amend_message(
            session.session_id, message.message_id, {"content": "three"}, expected_version=read.version
        )
    assert refused.value.detail["amended_version"] == first.version
    assert refused.value.detail["expected_version"] == read.version
    assert await contents(ledger, session.session_id) == ["two"]


async def test_amending_a_message_that_is_not_there(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    with pytest.raises(MessageNotFound):
        await ledger.amend_message(session.session_id, "none", {"content": "x"})


async def test_g4_two_tool_calls_added_at_once_both_stay(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [user(), ChatMessage(role="assistant", content="let me see")])
    calls = [{**CALL, "id": f"c{n}"} for n in range(10)]
    receipts = await asyncio.gather(*(ledger.add_tool_call(session.session_id, call) for call in calls))
    assert {r.sequence for r in receipts} == {1}
    [_, holder] = await ledger.get_messages(session.session_id)
    assert sorted(c["id"] for c in holder.tool_calls or []) == [f"c{n}" for n in range(10)]
    again = await ledger.add_tool_call(session.session_id, calls[0])
    assert (again.sequence, again.added) == (1, False)


async def test_a_user_message_is_the_boundary_of_a_turn(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [ChatMessage(role="assistant", content="before"), user()])
    receipt = await ledger.add_tool_call(session.session_id, CALL, message_id="made")
    assert (receipt.message_id, receipt.sequence, receipt.added) == ("made", 2, True)


async def test_titles_metadata_pins(ledger: ChatLedger) -> None:
    session = await ledger.create_session(metadata={"a": 1, "b": 2})
    await ledger.update_session(session.session_id, title="First", only_if_empty=True)
    await ledger.update_session(session.session_id, title="Second", only_if_empty=True)
    changed = await ledger.update_session(session.session_id, metadata={"a": None, "c": 3}, pinned=True, status="done")
    assert (changed.title, changed.metadata, changed.pinned, changed.status) == (
        "First",
        {"b": 2, "c": 3},
        True,
        "done",
    )


async def test_truncate_and_go_on(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    old = [user(str(n)) for n in range(4)]
    await ledger.append_messages(session.session_id, old)
    done = await ledger.truncate_session(session.session_id, 2, expected_sequence=4)
    assert (done.removed, done.next_sequence) == (2, 4)
    await ledger.append_messages(session.session_id, old)  # a redelivery does not bring the removed ones back
    [receipt] = await ledger.append_messages(session.session_id, [user("new")])
    assert receipt.sequence == 4
    assert await contents(ledger, session.session_id) == ["0", "1", "new"]
    with pytest.raises(SequenceConflict):
        await ledger.truncate_session(session.session_id, 0, expected_sequence=4)


async def test_fork(ledger: ChatLedger) -> None:
    session = await ledger.create_session(user_id="u1", title="Trip")
    await ledger.append_messages(session.session_id, [user(str(n)) for n in range(4)])
    fork = await ledger.fork_session(session.session_id, "fork", at_sequence=1, user_id="u1")
    assert (fork.user_id, fork.title, fork.forked_from, fork.message_count) == ("u1", "Trip", session.session_id, 2)
    assert await ledger.fork_session(session.session_id, "fork", at_sequence=1) == fork
    with pytest.raises(SessionIdConflict):
        await ledger.fork_session(session.session_id, "fork", at_sequence=2)


async def test_usage_is_recorded_exactly_once(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    usage = Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15)
    for _ in range(3):
        updated = await ledger.record_usage(session.session_id, usage, usage_id="completion-1")
    assert updated.total_usage == UsageTotals.model_validate(usage.model_dump())
    with pytest.raises(UsageConflict):
        await ledger.record_usage(session.session_id, Usage(prompt_tokens=1), usage_id="completion-1")


async def test_lists_go_on_with_the_cursor(ledger: ChatLedger) -> None:
    made = [(await ledger.create_session(user_id="u1", title=f"Trip {n}")).session_id for n in range(5)]
    await ledger.create_session(user_id="u2")
    await ledger.update_session(made[0], pinned=True)
    first = await ledger.list_sessions("u1", limit=3)
    second = await ledger.list_sessions("u1", limit=3, cursor=first.cursor)
    assert [s.session_id for s in first.sessions + second.sessions] == [made[0], *reversed(made[1:])]
    assert second.cursor is None
    assert [s.session_id for s in (await ledger.list_sessions("u1", title="trip 3")).sessions] == [made[3]]


# Refusals


async def test_g8_another_users_session_looks_like_a_missing_one(ledger: ChatLedger) -> None:
    await ledger.create_session("theirs", user_id="u1")
    assert await ledger.get_session("theirs", user_id="u2") is None
    assert await ledger.get_session("missing", user_id="u2") is None
    answers = []
    for session_id in ("theirs", "missing"):
        with pytest.raises(SessionNotFound) as refused:
            await ledger.append_messages(session_id, [user()], user_id="u2")
        answers.append((type(refused.value), str(refused.value).replace(session_id, "…")))
        assert refused.value.detail == {"session_id": session_id}
        assert await ledger.delete_session(session_id, user_id="u2") is False
    assert answers[0] == answers[1]


async def enter(ledger: ChatLedger, session_id: str, **asking: Any) -> str:
    async with ledger.stream(session_id, force=True, **asking):
        return "had it"


# A call of each method that is told who asks about a session.
ASKING: dict[str, Callable[..., Awaitable[Any]]] = {
    "get_session": lambda ledger, *at, **asking: ledger.get_session(*at, **asking),
    "get_messages": lambda ledger, *at, **asking: ledger.get_messages(*at, after=-1, **asking),
    "append_messages": lambda ledger, *at, **asking: ledger.append_messages(*at, [user()], **asking),
    "amend_message": lambda ledger, *at, **asking: ledger.amend_message(*at, "m0", {"content": "x"}, **asking),
    "add_tool_call": lambda ledger, *at, **asking: ledger.add_tool_call(*at, CALL, **asking),
    "update_session": lambda ledger, *at, **asking: ledger.update_session(*at, title="Stolen", **asking),
    "delete_session": lambda ledger, *at, **asking: ledger.delete_session(*at, **asking),
    "fork_session": lambda ledger, *at, **asking: ledger.fork_session(*at, **asking),
    "truncate_session": lambda ledger, *at, **asking: ledger.truncate_session(*at, 0, **asking),
    "record_usage": lambda ledger, *at, **asking: ledger.record_usage(*at, Usage(total_tokens=1), **asking),
    "stream": enter,
    "follow": lambda ledger, *at, **asking: anext(ledger.follow(*at, **asking)),
}


def test_every_method_that_is_told_who_asks_is_there() -> None:
    methods = {
        name
        for name, method in inspect.getmembers(ChatLedger, inspect.isfunction)
        if not name.startswith("_") and "user_id" in inspect.signature(method).parameters
    }
    assert methods - {"create_session", "list_sessions"} == ASKING.keys()  # of these two, see the database's tests


async def test_g8_every_method_answers_a_stranger_as_if_there_were_no_session(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    async def told(method: str, session_id: str, user_id: str) -> str:
        try:
            return repr(await ASKING[method](ledger, session_id, user_id=user_id))
        except SessionNotFound as refused:
            return f"{refused} {refused.detail}".replace(session_id, "…")

    for method in ASKING:
        session_id = f"theirs: {method}"
        await ledger.create_session(session_id, user_id="u1")
        await ledger.append_messages(session_id, [user("secret", message_id="m0")])
        before = await everything(connection)
        answer = await told(method, session_id, "u2")
        assert answer == await told(method, "missing", "u2"), method
        assert await everything(connection) == before, method
        assert answer != await told(method, session_id, "u1"), method


async def test_g11_a_deleted_session_stays_deleted(ledger: ChatLedger) -> None:
    session = await ledger.create_session(user_id="u1")
    await ledger.append_messages(session.session_id, [user()])
    assert await ledger.delete_session(session.session_id, user_id="u1") is True
    assert await ledger.delete_session(session.session_id, user_id="u1") is False
    with pytest.raises(SessionNotFound):
        await ledger.append_messages(session.session_id, [user()])
    with pytest.raises(SessionNotFound):
        await ledger.create_session(session.session_id, user_id="u1")
    assert await ledger.get_session(session.session_id) is None


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "role"),
        ({"role": "narrator"}, "role"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}, "tool_calls"),
        ({"role": "user", "message_id": "x" * 256}, "message_id"),
    ],
)
async def test_g10_a_bad_message_is_named_and_nothing_is_stored(
    ledger: ChatLedger, message: dict[str, Any], field: str
) -> None:
    session = await ledger.create_session()
    with pytest.raises(InvalidMessage) as refused:
        await ledger.append_messages(session.session_id, [user(), message])
    assert (refused.value.index, refused.value.field) == (1, field)
    assert await contents(ledger, session.session_id) == []


async def test_arguments_that_no_call_can_have(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    for call in (
        ledger.append_messages("", [user()]),
        ledger.create_session("x" * 256),
        ledger.get_messages(session.session_id, limit=0),
        ledger.get_messages(session.session_id, after=2**40),
        ledger.list_sessions("u1", cursor="nonsense"),
        ledger.record_usage(session.session_id, Usage(prompt_tokens=-1)),
        ledger.truncate_session(session.session_id, -1),
        ledger.amend_message(session.session_id, "m", {"role": "user"}),
    ):
        with pytest.raises(InvalidArgument):
            await call


async def test_a_fence_that_is_nobodys_is_stale(ledger: ChatLedger) -> None:
    session = await ledger.create_session()
    with pytest.raises(StaleFence):
        await ledger.append_messages(session.session_id, [user()], fence=1)


async def test_a_database_without_a_ledger_says_what_to_do(empty_database_url: str) -> None:
    async with ChatLedger(empty_database_url) as ledger:
        with pytest.raises(MigrationError, match="chatledger migrate"):
            await ledger.create_session()


# Connections


async def test_on_a_connection_the_calls_join_its_transaction(
    connection: asyncpg.Connection[asyncpg.Record], ledger: ChatLedger
) -> None:
    await ledger.create_session("s1")
    await ledger.append_messages("s1", [user("before")])
    transaction = connection.transaction()
    await transaction.start()
    await ChatLedger(connection).append_messages("s1", [user("rolled back")])
    await transaction.rollback()
    [receipt] = await ledger.append_messages("s1", [user("after")])
    assert receipt.sequence == 1
    assert await contents(ledger, "s1") == ["before", "after"]


async def test_a_pool_of_the_callers_stays_open_and_may_decode_json(database_url: str) -> None:
    async def set_codec(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async with asyncpg.create_pool(database_url, init=set_codec) as pool:
        async with ChatLedger(pool) as ledger:
            session = await ledger.create_session(metadata={"a": 1})
            await ledger.append_messages(session.session_id, [user("hi", metadata={"b": [2]})])
            loaded = await ledger.get_session(session.session_id)
        assert loaded is not None
        assert (loaded.metadata, loaded.messages[0].metadata) == ({"a": 1}, {"b": [2]})
        assert await pool.fetchval("select 1") == 1


async def test_without_prepared_statements(database_url: str) -> None:
    async with ChatLedger(database_url, settings=Settings(prepared_statements=False)) as ledger:
        session = await ledger.create_session()
        await ledger.append_messages(session.session_id, [user()])
        assert await contents(ledger, session.session_id) == ["hi"]


def test_a_second_event_loop_gets_a_clear_error(database_url: str) -> None:
    ledger = ChatLedger(database_url)
    first = asyncio.new_event_loop()
    first.run_until_complete(ledger.open())
    second = asyncio.new_event_loop()
    with pytest.raises(ChatLedgerError, match="another event loop"):
        second.run_until_complete(ledger.status())
    first.run_until_complete(ledger.close())
    first.close()
    second.close()


async def test_verify_status_and_purge(ledger: ChatLedger) -> None:
    from datetime import timedelta

    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [user()])
    assert await ledger.verify_session() == []
    assert (await ledger.status())["release"]
    assert await ledger.purge_sessions(timedelta(days=1)) == 0
    assert await ledger.purge_sessions(timedelta(0)) == 1
