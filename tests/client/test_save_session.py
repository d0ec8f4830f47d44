"""Saving a session held in memory: what the caller changed, and nothing else (G3, G4, G11)."""

from __future__ import annotations

import asyncio
import json
import pickle
from copy import deepcopy
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatledger import (
    AmendConflict,
    ChatLedger,
    ChatMessage,
    ChatSession,
    InvalidArgument,
    InvalidMessage,
    MessageIdConflict,
    MessageNotFound,
    SessionNotFound,
    Usage,
)
from tests.helpers.calls import real_call, replace_call
from tests.helpers.messages import call, user
from tests.helpers.sessions import load
from tests.helpers.sql import Psql


async def saved(ledger: ChatLedger, *texts: str) -> ChatSession:
    session = ChatSession.new(user_id="u1")
    session.messages += [user(text) for text in texts]
    return await ledger.save_session(session)


def texts(session: ChatSession) -> list[Any]:
    return [message.content for message in session.messages]


# One caller


async def test_a_new_session_is_created_and_equals_what_is_loaded(ledger: ChatLedger) -> None:
    session = ChatSession.new(user_id="u1", title="Trip", metadata={"a": [1]})
    session.messages = [user("one"), ChatMessage(role="assistant", tool_calls=[call("c1")], metadata={"n": 1})]
    session.pinned = True
    session.usage.append(Usage(prompt_tokens=5))
    saved = await ledger.save_session(session)
    assert saved is session
    assert [m.sequence for m in session.messages] == [0, 1]
    assert {m.created_at for m in session.messages} == {session.updated_at}
    assert session.saved_message_count == 2
    assert await load(ledger, session.session_id) == session


@pytest.mark.parametrize("text", ["another", 7])
async def test_g4_a_message_that_is_there_twice_in_two_ways_is_refused(ledger: ChatLedger, text: Any) -> None:
    session = await saved(ledger, "one", "two")
    twin = session.messages[1].model_copy()
    twin.content = text
    session.messages.append(twin)
    with pytest.raises(MessageIdConflict, match="another message in the list") as refused:
        await ledger.save_session(session)
    assert refused.value.detail["index"] == 2
    assert texts(await load(ledger, session.session_id)) == ["one", "two"]

    session.messages[1].content = text
    if text == 7:
        with pytest.raises(InvalidMessage, match="content") as invalid:
            await ledger.save_session(session)
        assert invalid.value.index == 1
    else:
        await ledger.save_session(session)
        assert texts(await load(ledger, session.session_id)) == ["one", "another"]


async def test_tool_calls_with_the_same_id_are_stored_as_they_are(ledger: ChatLedger) -> None:
    session = ChatSession.new()
    session.messages = [ChatMessage(role="assistant", tool_calls=[call("c0")]) for _ in range(2)]
    await ledger.save_session(session)
    session.messages[0].tool_calls = [call("c0"), call("c1"), call("c1")]
    session.messages[1].tool_calls = [call("c0"), call("c0")]
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session


async def test_saving_again_changes_nothing(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    version = session.version
    await ledger.save_session(session)
    assert session.version == version
    assert await load(ledger, session.session_id) == session


async def test_every_kind_of_change_is_saved(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one", "two")
    session.title, session.pinned, session.status = "Title", True, "done"
    session.metadata = {"a": 1, "b": {"c": 2}}
    session.usage.append(Usage(completion_tokens=7, model="gpt-5", reasoning_tokens=3))
    session.messages[0].content = [{"type": "text", "text": "edited"}]
    session.messages[0].metadata = {"edited": True}
    session.messages[1].name = "Ann"
    session.messages.append(user("three"))
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session

    session.title, session.metadata, session.messages[0].metadata, session.messages[1].name = None, {"b": 0}, None, None
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert (loaded.title, loaded.metadata, loaded.messages[0].metadata or {}, loaded.messages[1].name) == (
        None,
        {"b": 0},
        {},
        None,
    )


async def test_values_changed_in_place_are_seen(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    session.metadata["deep"] = {"list": [1]}
    session.messages[0].metadata = {"tags": ["a"]}
    await ledger.save_session(session)
    session.metadata["deep"]["list"].append(2)
    assert session.messages[0].metadata is not None
    session.messages[0].metadata["tags"].append("b")
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert loaded.metadata == {"deep": {"list": [1, 2]}}
    assert loaded.messages[0].metadata == {"tags": ["a", "b"]}


async def test_one_list_of_messages_in_several_sessions_is_stored_in_full_in_each(ledger: ChatLedger) -> None:
    messages = [user("one"), user("two")]
    for _ in range(3):
        session = ChatSession.new(user_id="u1")
        session.messages = messages
        await ledger.save_session(session)
        assert texts(await load(ledger, session.session_id)) == ["one", "two"]


async def test_a_window_saves_what_is_new(ledger: ChatLedger) -> None:
    session = await saved(ledger, *(str(n) for n in range(1_500)))
    window = await load(ledger, session.session_id, last=50)
    assert texts(window) == [str(n) for n in range(1_450, 1_500)]
    window.messages.append(user("new"))
    await ledger.save_session(window)
    assert window.messages[-1].sequence == 1_500
    assert window.saved_message_count == 1_501
    assert texts(await load(ledger, session.session_id)) == [*map(str, range(1_500)), "new"]


async def test_a_copy_that_went_through_json_saves_its_changes(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one", "two")
    other = await saved(ledger, "from elsewhere")
    session.title = "Before"
    session.metadata["k"] = 1
    session.usage.append(Usage(prompt_tokens=3))
    session.messages[0].content = "edited before"
    session.messages.append(user("new"))
    session.messages.append(other.messages[0])  # has a sequence, but not in this session

    dumped = json.loads(json.dumps(session.dump_copy()))
    copy = ChatSession.load_copy(dumped)
    assert copy.model_dump() == session.model_dump()
    copy.messages[1].content = "edited after"
    await ledger.save_session(copy)
    await ledger.save_session(ChatSession.load_copy(dumped))

    loaded = await load(ledger, session.session_id)
    assert texts(loaded) == ["edited before", "edited after", "new", "from elsewhere"]
    assert (loaded.title, loaded.metadata, loaded.total_usage.prompt_tokens) == ("Before", {"k": 1}, 3)


async def test_tool_calls_of_the_current_turn(ledger: ChatLedger) -> None:
    session = ChatSession.new()
    session.add_tool_call_to_current_turn(call("c0"))
    assert (session.messages[0].role, session.messages[0].content) == ("assistant", "")
    session.messages.append(ChatMessage(role="tool", tool_call_id="c0", content="ok"))
    await ledger.save_session(session)
    session.add_tool_call_to_current_turn(call("c1"))  # past the result, onto a message that is stored
    await ledger.save_session(session)
    session.messages.append(user())
    session.add_tool_call_to_current_turn(call("c2"))
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert [[c["id"] for c in m.tool_calls or []] for m in loaded.messages] == [["c0", "c1"], [], [], ["c2"]]


# Several callers


async def test_two_tasks_share_one_session_object(ledger: ChatLedger) -> None:
    session = await saved(ledger, "zero")
    saved_first = asyncio.Event()

    async def slow() -> None:
        session.messages += [user("a"), user("b")]
        await saved_first.wait()
        await ledger.save_session(session)

    async def quick() -> None:
        session.messages.append(user("c"))
        await ledger.save_session(session)
        saved_first.set()

    await asyncio.gather(slow(), quick())
    assert [m.sequence for m in session.messages] == [0, 1, 2, 3]
    loaded = await load(ledger, session.session_id)
    assert loaded == session


async def test_one_object_saved_by_many_tasks_at_once_counts_everything_once(ledger: ChatLedger) -> None:
    session = await saved(ledger)

    async def work(n: int) -> None:
        session.usage.append(Usage(total_tokens=1))
        session.messages.append(user(str(n)))
        session.metadata[str(n)] = n
        await ledger.save_session(session)

    await asyncio.gather(*map(work, range(16)))
    loaded = await load(ledger, session.session_id)
    assert (loaded.total_usage.total_tokens, session.total_usage.total_tokens) == (16, 16)
    assert texts(loaded) == [str(n) for n in range(16)]
    assert loaded.metadata == {str(n): n for n in range(16)}
    await ledger.save_session(session)
    assert (await load(ledger, session.session_id)).version == loaded.version


async def test_one_object_changed_and_saved_again_while_it_is_being_saved(ledger: ChatLedger) -> None:
    session = await saved(ledger, "x")
    for n in range(20):
        session.title, session.metadata["n"] = f"a{n}", f"a{n}"
        session.messages[0].content = f"a{n}"
        session.messages.append(ChatMessage(role="assistant", content="thinking"))
        first = asyncio.create_task(ledger.save_session(session))
        await asyncio.sleep(0)
        session.title, session.metadata["n"] = f"b{n}", f"b{n}"
        session.messages[0].content = f"b{n}"
        session.add_tool_call_to_current_turn(call(f"c{n}"))
        await asyncio.gather(first, ledger.save_session(session))
        loaded = await load(ledger, session.session_id)
        assert (loaded.title, loaded.metadata["n"], loaded.messages[0].content) == (f"b{n}", f"b{n}", f"b{n}")
        assert loaded.messages[-1].tool_calls == [call(f"c{n}")]


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("by_json", [True, False])
async def test_g3_a_message_that_was_changed_after_a_cancelled_save(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch, committed: bool, stored: bool, by_json: bool
) -> None:
    session = await saved(ledger, "one") if stored else ChatSession.new(user_id="u1")
    session.messages.append(ChatMessage(role="assistant", content="thinking"))
    session.usage.append(Usage(total_tokens=3))
    real = real_call("save_session")

    async def cancelled(*arguments: Any) -> Any:
        if committed:
            await real(*arguments)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        replace_call(patch, "save_session", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await ledger.save_session(session)
    if by_json:
        session = ChatSession.load_copy(json.loads(json.dumps(session.dump_copy())))
    session.messages[-1].content = "thought"
    session.add_tool_call_to_current_turn(call("c1"))
    await ledger.save_session(session)
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert (loaded.messages[-1].content, loaded.messages[-1].tool_calls) == ("thought", [call("c1")])
    assert (len(loaded.messages), loaded.total_usage.total_tokens) == (1 + stored, 3)
    assert await ledger.verify_session() == []


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("how", ["deep", "shallow", "json"])
async def test_g3_usage_that_two_copies_have_is_counted_once(ledger: ChatLedger, stored: bool, how: str) -> None:
    session = await saved(ledger) if stored else ChatSession.new(user_id="u1")
    session.usage.append(Usage(total_tokens=5))
    if how == "json":
        copy = ChatSession.model_validate_json(session.model_dump_json())
    else:
        copy = session.model_copy(deep=how == "deep")
    copy.usage.append(Usage(total_tokens=2))
    await ledger.save_session(session)
    await ledger.save_session(copy)
    assert (await load(ledger, session.session_id)).total_usage.total_tokens == 7


async def test_g4_a_copy_with_an_update_is_not_undone_by_the_original(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    await ledger.save_session(session.model_copy(update={"title": "new"}))
    session.messages.append(user("two"))
    await ledger.save_session(session)
    assert (await load(ledger, session.session_id)).title == "new"


async def test_usage_that_cannot_be_recorded_is_refused_and_forgotten(ledger: ChatLedger) -> None:
    session = await saved(ledger)
    session.usage.append(Usage(total_tokens=5))
    await ledger.save_session(session)
    session.usage.append(Usage(total_tokens=-4))
    with pytest.raises(InvalidArgument):
        await ledger.save_session(session)
    session.usage[1] = Usage(total_tokens=4)
    await ledger.save_session(session)
    assert (await load(ledger, session.session_id)).total_usage.total_tokens == 9


async def test_every_usage_is_loaded_as_it_was_added(ledger: ChatLedger) -> None:
    session = await saved(ledger)
    given = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}, "tier": "flex"}
    session.usage = [Usage(prompt_tokens=100, completion_tokens=200, total_tokens=300), Usage.model_validate(given)]
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert loaded == session
    assert loaded.usage == session.usage
    assert (loaded.usage[1].cache_read_tokens, loaded.usage[1].model_extra) == (
        5,
        {"tier": "flex", "prompt_tokens_details": {"cached_tokens": 5}},
    )
    assert loaded.total_usage.model_dump() == {
        "prompt_tokens": 107, "completion_tokens": 202, "total_tokens": 309,
        "cache_read_tokens": 5, "cache_creation_tokens": 0, "reasoning_tokens": 0,
    }  # fmt: skip

    loaded.usage = [Usage(completion_tokens=1)]  # another list: what is recorded stays
    await ledger.save_session(loaded)
    assert [used.total_tokens for used in loaded.usage] == [300, 9, 1]
    assert await load(ledger, session.session_id) == loaded

    loaded.usage[0].prompt_tokens = 0
    with pytest.raises(InvalidArgument, match="usage 0 is recorded and was changed"):
        await ledger.save_session(loaded)


async def test_a_null_in_metadata_is_no_conflict(ledger: ChatLedger) -> None:
    session = ChatSession.new()
    session.messages = [ChatMessage(role="user", metadata={"k": None})]
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    loaded.messages[0].metadata = {"k": 1}
    await ledger.save_session(loaded)
    assert (await load(ledger, session.session_id)).messages[0].metadata == {"k": 1}


async def test_one_is_not_true(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    session.metadata["flags"] = [1, 0]
    session.messages[0].metadata = {"n": {"flag": 1}}
    await ledger.save_session(session)
    session.metadata["flags"] = [True, False]
    session.messages[0].metadata = {"n": {"flag": True}}
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert str(loaded.metadata) == "{'flags': [True, False]}"
    assert str(loaded.messages[0].metadata) == "{'n': {'flag': True}}"


async def test_metadata_stays_the_same_object(ledger: ChatLedger) -> None:
    session = await saved(ledger)
    metadata = session.metadata
    await ledger.save_session(session)
    metadata["k"] = 1
    await ledger.save_session(session)
    assert (await load(ledger, session.session_id)).metadata == {"k": 1}


async def test_g4_sixteen_copies_save_their_changes_and_all_survive(ledger: ChatLedger) -> None:
    first = ChatSession.new(user_id="u1")
    first.messages = [user("q"), ChatMessage(role="assistant", content="thinking"), user("draft")]
    await ledger.save_session(first)
    copies = [await load(ledger, first.session_id) for _ in range(16)]
    for n, copy in enumerate(copies):
        copy.messages.append(user(f"new {n}"))
    copies[0].title = "Renamed"
    copies[1].pinned = True
    copies[2].usage.append(Usage(prompt_tokens=10))
    copies[3].usage.append(Usage(prompt_tokens=20))
    for n in (4, 5):
        copies[n].messages[1].tool_calls = [call(f"c{n}")]
    copies[6].messages[2].content = "final"
    copies[7].metadata["seven"] = 7

    for _ in range(2):  # a second save of each changes nothing
        await asyncio.gather(*(ledger.save_session(copy) for copy in copies))
        loaded = await load(ledger, first.session_id)
        assert (loaded.title, loaded.pinned, loaded.total_usage.prompt_tokens) == ("Renamed", True, 30)
        assert loaded.metadata == {"seven": 7}
        assert sorted(c["id"] for c in loaded.messages[1].tool_calls or []) == ["c4", "c5"]
        assert texts(loaded)[:3] == ["q", "thinking", "final"]
        assert sorted(texts(loaded)[3:]) == sorted(f"new {n}" for n in range(16))
    assert await ledger.verify_session() == []


async def test_g4_both_edit_the_same_text(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    mine, theirs = await load(ledger, session.session_id), await load(ledger, session.session_id)
    theirs.messages[0].content = "theirs"
    await ledger.save_session(theirs)
    mine.messages[0].content = "mine"
    mine.messages.append(user("new"))
    with pytest.raises(AmendConflict) as refused:
        await ledger.save_session(mine)
    detail = refused.value.detail
    assert detail["field"] == "content"
    assert detail["expected_version"] == session.version < detail["amended_version"]

    reloaded = await load(ledger, session.session_id)  # how to go on
    assert texts(reloaded) == ["theirs"]
    reloaded.messages[0].content = "both"
    await ledger.save_session(reloaded)
    assert texts(await load(ledger, session.session_id)) == ["both"]


async def test_g4_different_fields_of_one_message_do_not_conflict(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    mine, theirs = await load(ledger, session.session_id), await load(ledger, session.session_id)
    theirs.messages[0].metadata = {"theirs": 1}
    mine.messages[0].metadata = {"mine": 1}
    mine.messages[0].content = "mine"
    await ledger.save_session(theirs)
    await ledger.save_session(mine)
    [message] = (await load(ledger, session.session_id)).messages
    assert (message.content, message.metadata) == ("mine", {"theirs": 1, "mine": 1})


async def test_g4_a_stale_copy_does_not_revert_a_title(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    stale = await load(ledger, session.session_id)
    await ledger.update_session(session.session_id, title="Newer", metadata={"k": "newer"})
    stale.messages.append(user("late"))
    stale.title, stale.metadata = "Stale", {"k": "stale", "other": 1}
    await ledger.save_session(stale)
    loaded = await load(ledger, session.session_id)
    assert (loaded.title, loaded.metadata) == ("Newer", {"k": "newer", "other": 1})
    assert (stale.title, stale.metadata) == ("Newer", {"k": "newer", "other": 1})


async def test_changes_by_psql_and_a_copy(ledger: ChatLedger, psql: Psql) -> None:
    session = await saved(ledger, "one")
    await psql(
        f"select chatledger.append_messages('{session.session_id}',"
        ' array[\'{"message_id": "p", "role": "user", "content": "psql"}\']::jsonb[])'
    )
    session.messages.append(user("mine"))
    await ledger.save_session(session)
    assert session.messages[-1].sequence == 2
    assert session.saved_message_count == 3
    assert texts(await load(ledger, session.session_id)) == ["one", "psql", "mine"]


# Refusals


async def test_g11_a_stale_copy_does_not_bring_a_session_back(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    await ledger.delete_session(session.session_id)
    session.messages.append(user("late"))
    with pytest.raises(SessionNotFound):
        await ledger.save_session(session)
    assert await ledger.get_session(session.session_id) is None


async def test_g11_nor_does_the_first_save_of_a_copy_made_before(ledger: ChatLedger) -> None:
    session = ChatSession.new(user_id="u1")
    copy = session.model_copy(deep=True)
    await ledger.save_session(session)
    await ledger.delete_session(session.session_id)
    with pytest.raises(SessionNotFound):
        await ledger.save_session(copy)


async def test_g8_another_users_session_is_not_found(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    session.user_id = "u2"
    with pytest.raises(SessionNotFound):
        await ledger.save_session(session)


async def test_a_changed_message_that_was_removed_is_named(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one", "two")
    await ledger.truncate_session(session.session_id, 1)
    session.messages[1].content = "edited"
    session.messages.append(user("three"))
    with pytest.raises(MessageNotFound):
        await ledger.save_session(session)
    assert texts(await load(ledger, session.session_id)) == ["one"]


async def test_g3_one_id_with_two_bodies_is_refused(ledger: ChatLedger) -> None:
    session = await saved(ledger)
    session.messages += [ChatMessage(message_id="m", role="user", content=text) for text in ("one", "two")]
    with pytest.raises(MessageIdConflict):
        await ledger.save_session(session)
    assert texts(await load(ledger, session.session_id)) == []


async def test_g10_a_new_message_with_a_stored_id_is_named_by_its_place_in_the_list(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one", "two")
    await ledger.append_messages(session.session_id, [ChatMessage(message_id="m", role="user", content="theirs")])
    session.messages.append(ChatMessage(message_id="m", role="user", content="ours"))
    with pytest.raises(MessageIdConflict, match='message 2: message_id "m" is stored') as refused:
        await ledger.save_session(session)
    assert refused.value.detail["index"] == 2
    assert texts(await load(ledger, session.session_id)) == ["one", "two", "theirs"]


async def test_g10_nothing_is_stored_when_a_part_is_refused(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    version = session.version
    session.title = "Title"
    session.messages[0].content = "edited"
    session.messages += [user("two"), ChatMessage(role="tool", content="no call id")]
    with pytest.raises(InvalidMessage) as refused:
        await ledger.save_session(session)
    assert (refused.value.index, refused.value.field) == (2, "tool_call_id")
    loaded = await load(ledger, session.session_id)
    assert (loaded.version, loaded.title, texts(loaded)) == (version, None, ["one"])

    session.messages[-1].tool_call_id = "c1"
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session


async def test_g10_another_role_is_refused(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one", "two")
    session.title, session.messages[1].role = "Title", "assistant"
    with pytest.raises(InvalidArgument, match="message 1: role cannot change") as refused:
        await ledger.save_session(session)
    assert (refused.value.detail["index"], refused.value.detail["field"]) == (1, "role")
    loaded = await load(ledger, session.session_id)
    assert (loaded.title, [message.role for message in loaded.messages]) == (None, ["user", "user"])


@pytest.mark.parametrize(("field", "value"), [("content", 7), ("metadata", {"at": object()}), ("tool_calls", [{}])])
async def test_g10_a_stored_message_that_cannot_be_amended_is_named(ledger: ChatLedger, field: str, value: Any) -> None:
    session = await saved(ledger, "one", "two")
    setattr(session.messages[1], field, value)
    with pytest.raises(InvalidMessage) as refused:
        await ledger.save_session(session)
    assert (refused.value.index, refused.value.field) == (1, field)
    assert texts(await load(ledger, session.session_id)) == ["one", "two"]


async def test_g10_a_dict_is_no_message_of_a_session(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    session.messages.append({"role": "user", "content": "two"})  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="message 1: is a dict; expected a ChatMessage"):
        await ledger.save_session(session)
    session.messages[1] = ChatMessage.model_validate(session.messages[1])
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session


# What comes back


@pytest.mark.parametrize("metadata", [{"a": None}, {"a": None, "b": [None, {"c": None}]}, {"a": 0.1, "b": 1e300}, {}])
async def test_metadata_comes_back_as_it_was_saved(ledger: ChatLedger, metadata: dict[str, Any]) -> None:
    session = ChatSession.new(metadata=metadata)
    session.messages = [user("one"), user("two")]
    session.messages[0].metadata = deepcopy(metadata)
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session

    session.metadata["later"], session.messages[1].metadata = None, deepcopy(metadata)
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session

    session.metadata.clear()
    session.messages[0].metadata, session.messages[1].metadata = {}, None
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert loaded == session
    assert loaded.metadata == {}


async def test_a_number_with_more_digits_than_a_float_has_is_no_change(ledger: ChatLedger, psql: Psql) -> None:
    session = await saved(ledger, "one")
    third = (
        "jsonb_build_object('third', 1.0 / 3 + 1e-19, 'in', jsonb_build_array(jsonb_build_object('third', 1.0 / 3)))"
    )
    await psql(f"""
        select chatledger.update_session('{session.session_id}', p_metadata => {third});
        select chatledger.amend_message('{session.session_id}', '{session.messages[0].message_id}',
            jsonb_build_object('metadata', {third}));
    """)
    copy = await load(ledger, session.session_id)
    metadata = copy.messages[0].metadata
    assert metadata is not None
    for values in (copy.metadata, metadata):
        values["third"] = 3
        values["in"][0]["third"] = 3
    await ledger.save_session(copy)
    loaded = await load(ledger, session.session_id)
    assert loaded.metadata == loaded.messages[0].metadata == {"third": 3, "in": [{"third": 3}]}


async def test_g10_what_postgres_cannot_store_is_replaced_in_the_copy_too(ledger: ChatLedger) -> None:
    session = ChatSession.new(user_id="u\0", session_id="s\0", title="t\0", metadata={"k\0": "v\ud800"})
    session.messages = [
        ChatMessage.model_validate({"message_id": "m\0", "role": "user", "content": "a\0", "x\0": "\0"})
    ]
    await ledger.save_session(session)
    assert session.messages[0].sequence == 0
    assert session.messages[0].content == "a\ufffd"
    assert await load(ledger, session.session_id) == session

    session.messages[0].content = "b\ud800"
    session.messages[0].metadata = {"k\0": "\0"}
    session.messages.append(ChatMessage(message_id="n\0", role="user", content="n"))
    await ledger.save_session(session)
    assert await load(ledger, session.session_id) == session
    assert session.messages[1].sequence == 1
    version = session.version
    await ledger.save_session(session)
    assert session.version == version


async def test_what_is_changed_while_it_is_saved_is_not_replaced(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await saved(ledger)
    session.messages.append(user("a\0"))
    real = real_call("save_session")

    async def changed_meanwhile(*arguments: Any) -> Any:
        outcome = await real(*arguments)
        session.messages[0].content = "b"
        return outcome

    with monkeypatch.context() as patch:
        replace_call(patch, "save_session", changed_meanwhile)
        await ledger.save_session(session)
    assert texts(await load(ledger, session.session_id)) == ["a\ufffd"]
    await ledger.save_session(session)
    assert texts(await load(ledger, session.session_id)) == ["b"]


async def test_a_copy_that_missed_something_equals_itself_after_json(ledger: ChatLedger) -> None:
    session = await saved(ledger, "one")
    stale = await load(ledger, session.session_id)
    await ledger.append_messages(session.session_id, [user("missed")])
    stale.messages.append(user("mine"))
    await ledger.save_session(stale)
    copy = ChatSession.model_validate_json(stale.model_dump_json())
    assert copy == stale
    copy.messages[0].content = "edited"
    await ledger.save_session(copy)
    assert texts(await load(ledger, session.session_id)) == ["edited", "missed", "mine"]


@pytest.mark.parametrize("how", ["deep", "pickle", "shallow"])
async def test_copies_save_on_their_own(ledger: ChatLedger, how: str) -> None:
    session = await saved(ledger, "one")
    session.messages[0].metadata = {"before": 1}
    copy: ChatSession = (
        pickle.loads(pickle.dumps(session)) if how == "pickle" else session.model_copy(deep=how == "deep")
    )
    assert copy == session
    copy.messages.append(user("of the copy"))
    session.messages.append(user("of the original"))
    await ledger.save_session(copy)
    await ledger.save_session(session)
    loaded = await load(ledger, session.session_id)
    assert texts(loaded) == ["one", "of the copy", "of the original"]
    assert loaded.messages[0].metadata == {"before": 1}


async def test_a_web_endpoint_that_returns_a_copy_shows_nothing_but_its_fields(ledger: ChatLedger) -> None:
    """A copy knows its old texts until it is saved; a browser must not get them."""
    session = await saved(ledger, "what I should not have said")
    session.messages[0].content, session.title = "what I meant", "Mine"

    async def show(request: Request) -> Response:
        return Response(session.model_dump_json(), media_type="application/json")

    app = Starlette(routes=[Route("/", show)])
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as browser:
        page = await browser.get("/")
    assert page.json().keys() == ChatSession.model_fields.keys()
    assert "what I meant" in page.text
    assert "should not have said" not in page.text
    await ledger.save_session(session)  # and the copy still knows its changes
    assert texts(await load(ledger, session.session_id)) == ["what I meant"]
