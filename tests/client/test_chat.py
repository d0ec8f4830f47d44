"""The functions that a chat backend calls, on the default ledger."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import chatledger
from chatledger import (
    ChatLedger,
    ChatSession,
    SessionNotFound,
    append_and_save_message,
    create_chat_session,
    delete_chat_session,
    get_chat_session,
    get_user_sessions,
    update_session_title,
    upsert_chat_session,
)
from tests.helpers.messages import user


@pytest.fixture(autouse=True)
async def default(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The default ledger is configured from the environment, and closed afterwards."""
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", database_url)
    yield
    await chatledger.close_default_ledger()


async def test_a_session_from_beginning_to_end() -> None:
    session = await create_chat_session("u1")
    session.messages.append(user("one"))
    assert await upsert_chat_session(session) is session
    assert await get_chat_session(session.session_id, "u1") == session
    assert await get_chat_session(session.session_id, "u2") is None
    assert await get_chat_session("missing") is None

    assert await update_session_title(session.session_id, "Trip", "u1")
    assert not await update_session_title(session.session_id, "Theirs", "u2")
    assert await update_session_title(session.session_id, "Other", only_if_empty=True)
    [listed] = (await get_user_sessions("u1")).sessions
    assert (listed.session_id, listed.title, listed.message_count) == (session.session_id, "Trip", 1)

    assert not await delete_chat_session(session.session_id, "u2")
    assert await delete_chat_session(session.session_id, "u1")
    assert not await delete_chat_session(session.session_id, "u1")


async def test_append_and_save_message() -> None:
    session = await create_chat_session("u1")
    message = user("one")
    updated = await append_and_save_message(session.session_id, message)
    assert updated is not None
    assert [m.content for m in updated.messages] == ["one"]
    assert await append_and_save_message(session.session_id, message) is None
    for missing in (SessionNotFound, ValueError):
        with pytest.raises(missing):
            await append_and_save_message("missing", user())


async def test_the_default_ledger_can_be_set(ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", "postgresql://nobody@/none?host=/nowhere")
    chatledger.set_default_ledger(ledger)
    session = await create_chat_session("u1")
    assert await ledger.get_session(session.session_id) == session

    await chatledger.close_default_ledger()
    assert await ledger.get_session(session.session_id) == session  # not ours to close
    assert chatledger.default_ledger() is not ledger


def test_without_a_database_url_the_default_ledger_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the server's user can reach it when we are root.
    folder = Path(tempfile.mkdtemp(prefix="chatledger-default-"))
    folder.chmod(0o755)
    monkeypatch.delenv("CHATLEDGER_DATABASE_URL")
    monkeypatch.setenv("CHATLEDGER_DATA_DIR", str(folder))

    async def write() -> str:
        session = await create_chat_session("u1")
        session.messages.append(user("kept"))
        await upsert_chat_session(session)
        await chatledger.close_default_ledger()
        return session.session_id

    async def read(session_id: str) -> ChatSession | None:
        session = await get_chat_session(session_id)
        await chatledger.close_default_ledger()
        return session

    session = asyncio.run(read(asyncio.run(write())))  # started, stopped and started again
    assert session is not None
    assert [message.content for message in session.messages] == ["kept"]
    shutil.rmtree(folder)


def test_ledgers_of_ended_event_loops_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        ledger = chatledger.default_ledger()
        assert ledger is chatledger.default_ledger()

    for _ in range(5):
        asyncio.run(use())
    from chatledger import chat

    assert len([loop for loop in chat._ledgers if loop.is_closed()]) <= 1


def test_a_second_event_loop_has_a_default_ledger_of_its_own() -> None:
    async def use() -> str:
        session = await create_chat_session("u1")
        await chatledger.close_default_ledger()
        return session.session_id

    assert asyncio.run(use()) != asyncio.run(use())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections that are left open
def test_the_default_ledger_works_in_a_second_event_loop_though_the_first_left_it_open() -> None:
    async def write(session_id: str) -> None:
        if await get_chat_session(session_id) is None:
            await create_chat_session("u1", session_id=session_id)
        updated = await append_and_save_message(session_id, user())
        assert updated is not None
        assert await get_chat_session(session_id) == updated

    async def count(session_id: str) -> int:
        session = await get_chat_session(session_id)
        await chatledger.close_default_ledger()
        return session.message_count if session else 0

    for _ in range(2):
        asyncio.run(write("s"))
    assert asyncio.run(count("s")) == 2
    gc.collect()  # so that it warns of them here


def test_one_session_object_is_used_in_several_event_loops() -> None:
    session = ChatSession.new(user_id="u1")

    async def use() -> None:
        session.messages += [user(), user()]
        await asyncio.gather(*(upsert_chat_session(session) for _ in range(3)))
        assert await get_chat_session(session.session_id) == session
        await chatledger.close_default_ledger()

    for _ in range(2):
        asyncio.run(use())
    assert [message.sequence for message in session.messages] == [0, 1, 2, 3]


async def test_one_message_object_in_several_sessions() -> None:
    message = user("shared")
    sessions = [await create_chat_session("u1") for _ in range(3)]
    for session in sessions:
        session.messages.append(message)
    await asyncio.gather(*map(upsert_chat_session, sessions))
    message.content = "changed"
    for session in sessions:
        await upsert_chat_session(session)
        loaded = await get_chat_session(session.session_id)
        assert loaded is not None
        assert [(m.sequence, m.content) for m in loaded.messages] == [(0, "changed")]


async def test_a_title_is_not_reverted_by_a_stale_copy() -> None:
    session = await create_chat_session("u1")
    assert await update_session_title(session.session_id, "Newer", only_if_empty=True)
    session.messages.append(user())
    await upsert_chat_session(session)
    assert session.title == "Newer"
    session.title = "Mine"
    assert await update_session_title(session.session_id, "Newest")
    await upsert_chat_session(session)
    loaded = await get_chat_session(session.session_id)
    assert loaded is not None
    assert (session.title, loaded.title) == ("Newest", "Newest")
