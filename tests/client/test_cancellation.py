"""A call that is cancelled, at whatever await, leaves nothing half done, and may be made again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from openai.types.chat import ChatCompletionChunk

from chatledger import ChatLedger, ChatMessage, ChatSession, Usage, set_default_ledger, upsert_chat_session
from tests.helpers.cancelling import small_ledger, was_cancelled_at
from tests.helpers.following import followers_of, gone
from tests.helpers.openai_server import chunk

Stored = tuple[str | None, list[Any], int]
"""Of a session: its title, the contents of its messages, its tokens."""


@dataclass(frozen=True)
class Case:
    prepare: Callable[[ChatLedger, str], Awaitable[Any]]
    """Makes the session with this id; what it returns is passed to each call."""
    call: Callable[[ChatLedger, Any], Coroutine[Any, Any, Any]]
    after: Stored
    """What is stored once the call was made."""


async def no_session(ledger: ChatLedger, session_id: str) -> str:
    return session_id


async def new_copy(ledger: ChatLedger, session_id: str) -> ChatSession:
    session = ChatSession.new(session_id=session_id, user_id="u1", title="Trip")
    session.messages = [ChatMessage(role="user", content=text) for text in ("one", "two")]
    session.usage.append(Usage(total_tokens=5))
    return session


async def stored_session(ledger: ChatLedger, session_id: str) -> ChatSession:
    return await ledger.save_session(await new_copy(ledger, session_id))


async def changed_copy(ledger: ChatLedger, session_id: str) -> ChatSession:
    session = await stored_session(ledger, session_id)
    session.title, session.messages[0].content = "Trip to Oslo", "one, amended"
    session.messages.append(ChatMessage(role="user", content="three"))
    session.usage.append(Usage(total_tokens=2))
    return session


async def load(ledger: ChatLedger, stored: ChatSession) -> None:
    assert await ledger.get_session(stored.session_id) == stored


async def upsert(ledger: ChatLedger, session: ChatSession) -> None:
    set_default_ledger(ledger)
    await upsert_chat_session(session)


CHANGED: Stored = ("Trip to Oslo", ["one, amended", "two", "three"], 7)
CASES = {
    "create_session": Case(no_session, lambda ledger, session_id: ledger.create_session(session_id), (None, [], 0)),
    "get_session": Case(stored_session, load, ("Trip", ["one", "two"], 5)),
    "save_session, of a new one": Case(
        new_copy, lambda ledger, session: ledger.save_session(session), ("Trip", ["one", "two"], 5)
    ),
    "save_session": Case(changed_copy, lambda ledger, session: ledger.save_session(session), CHANGED),
    "upsert_chat_session": Case(changed_copy, upsert, CHANGED),
    "append_messages": Case(
        stored_session,
        lambda ledger, session: ledger.append_messages(
            session.session_id, [ChatMessage(message_id="three", role="user", content="three")]
        ),
        ("Trip", ["one", "two", "three"], 5),
    ),
    "amend_message": Case(
        stored_session,
        lambda ledger, session: ledger.amend_message(
            session.session_id, session.messages[1].message_id, {"content": "2"}
        ),
        ("Trip", ["one", "2"], 5),
    ),
}


async def stored(reader: ChatLedger, session_id: str) -> Stored | None:
    session = await reader.get_session(session_id)
    if session is None:
        return None
    return session.title, [message.content for message in session.messages], session.total_usage.total_tokens


@pytest.fixture
def reader(connection: asyncpg.Connection[asyncpg.Record]) -> ChatLedger:
    """A ledger that goes its own way to the database."""
    return ChatLedger(connection)


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("name", CASES)
async def test_a_call_may_be_cancelled_at_every_await_and_made_again(
    database_url: str, reader: ChatLedger, name: str, connected: bool
) -> None:
    case = CASES[name]
    for number in range(1, 200):
        session_id = f"s{number}"
        given = await case.prepare(reader, session_id)
        before = await stored(reader, session_id)
        async with small_ledger(database_url) as ledger:
            if connected:
                await ledger.status()
            cancelled = await was_cancelled_at(number, case.call(ledger, given))
            assert await stored(reader, session_id) in (before, case.after)
            await case.call(ledger, given)
            assert await stored(reader, session_id) == case.after
        if not cancelled:
            assert number > 3
            assert await reader.verify_session() == []
            return
    pytest.fail("it never comes to its end")


async def write(ledger: ChatLedger, session_id: str) -> None:
    """Hold a stream for a message of the user's and an answer."""
    async with ledger.stream(session_id, flush_interval=0) as stream:
        await stream.append({"message_id": "question", "role": "user", "content": "hi"})
        for text in ("Hello", "! How"):
            await stream.feed(ChatCompletionChunk.model_validate(chunk({"content": text})))
            await stream.flush()
        await stream.feed(ChatCompletionChunk.model_validate(chunk({"content": " are you?"}, "stop")))


async def test_a_stream_may_be_cancelled_at_every_await_and_begun_again(
    database_url: str, reader: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    whole = "Hello! How are you?"
    for number in range(1, 200):
        session_id = (await reader.create_session()).session_id
        async with small_ledger(database_url) as ledger:
            cancelled = await was_cancelled_at(number, write(ledger, session_id))
            assert await connection.fetch("select from chatledger.active_streams") == []
            texts: list[Any] = [message.content for message in await reader.get_messages(session_id)]
            assert texts[:1] in ([], ["hi"])
            assert all(whole.startswith(text) for text in texts[1:])
            await write(ledger, session_id)
        question, *cut, answer = await reader.get_messages(session_id)
        assert (question.content, answer.content, answer.metadata) == ("hi", whole, {})
        assert len(cut) <= 1
        assert all(message.metadata == {"interrupted": True} or message.content == whole for message in cut)
        if not cancelled:
            assert number > 10
            assert await reader.verify_session() == []
            return
    pytest.fail("it never comes to its end")


async def test_following_may_be_cancelled_at_every_await_and_begun_again(
    database_url: str, reader: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    await reader.create_session("s1")
    await reader.append_messages("s1", [{"role": "user", "content": "hi"}])

    async def first(ledger: ChatLedger) -> None:
        async with aclosing(ledger.follow("s1")) as events:
            assert (await anext(events)).sequence == 0

    async def next_one(ledger: ChatLedger) -> None:
        async with aclosing(ledger.follow("s1", after=0)) as events:
            assert (await anext(events)).sequence == 1

    for number in range(1, 200):
        async with small_ledger(database_url) as ledger:
            cancelled = await was_cancelled_at(number, first(ledger))
            assert followers_of(ledger) == []
            await first(ledger)
            async with asyncio.timeout(30):
                while not await gone(connection):  # the connection that LISTENs
                    await asyncio.sleep(0)
        if not cancelled:
            assert number > 3
            return
    pytest.fail("it never comes to its end")
