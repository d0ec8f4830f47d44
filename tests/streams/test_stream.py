"""One stream a session (G7), and answers that are saved as they grow, through the real openai client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from openai import APIConnectionError, AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from chatledger import (
    AmendConflict,
    ChatLedger,
    ChatLedgerError,
    ChatMessage,
    InvalidArgument,
    InvalidMessage,
    MessageNotFound,
    SessionNotFound,
    Settings,
    StaleFence,
    Stream,
    StreamBusy,
    TooManyStreams,
    Usage,
)
from chatledger.postgres import functions
from tests.helpers.calls import replace_call
from tests.helpers.lost_answers import answers_lost
from tests.helpers.openai_server import TEXT, USAGE, OpenAIServer, openai_server
from tests.helpers.openai_server import chunk as chunk_of
from tests.helpers.sessions import load
from tests.helpers.sql import Connect, until_waiting
from tests.helpers.waiting import until

BROKEN_OFF = (APIConnectionError, httpx.TransportError)  # older releases of openai let httpx's error through
INTERRUPTED = {"interrupted": True}
WHOLE = "Hello! How can I help?"
OSLO = {"id": "call_oslo", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
ROME = {"id": "call_rome", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
SEARCH = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
TOKENS = Usage.model_validate(
    {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
    | {
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
)


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
async def openai(server: OpenAIServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def session_id(ledger: ChatLedger) -> str:
    """A session in which the user has asked something."""
    session = await ledger.create_session(user_id="u1")
    await ledger.append_messages(session.session_id, [{"role": "user", "content": "hi"}])
    return session.session_id


async def answer(stream: Stream, openai: AsyncOpenAI, recording: str) -> None:
    async for chunk in await openai.chat.completions.create(
        model=recording,
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    ):
        await stream.feed(chunk)


async def answers(ledger: ChatLedger, session_id: str) -> list[ChatMessage]:
    """The messages behind the user's question."""
    return (await load(ledger, session_id)).messages[1:]


def said(message: ChatMessage) -> dict[str, Any]:
    """What a message says, without its id and place."""
    place = {"message_id", "sequence", "created_at", "amended_version"}
    return {key: value for key, value in message.model_dump(exclude=place).items() if value not in (None, {})}


async def until_saved(ledger: ChatLedger, session_id: str, text: str) -> None:
    async def is_saved() -> bool:
        return text in [message.content for message in await answers(ledger, session_id)]

    await until(is_saved)


async def too_long() -> None:
    """Wait to be cancelled."""
    async with asyncio.timeout(30):
        await asyncio.Event().wait()


async def until_renewed(watcher: functions.Connection) -> None:
    """Return when the one lease that there is lasts longer than it does now."""
    first = await watcher.fetchval("select expires_at from chatledger.active_streams")

    async def is_renewed() -> Any:
        return await watcher.fetchval("select expires_at > $1 from chatledger.active_streams", first)

    await until(is_renewed)


async def run_out(connection: asyncpg.Connection[asyncpg.Record], session_id: str) -> None:
    await connection.execute(
        "update chatledger.streams set expires_at = clock_timestamp() where session_id = $1", session_id
    )


# Answers of every shape


async def test_stream_ttl_and_flush_interval_of_the_settings(
    database_url: str, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    settings = Settings(stream_ttl=7200, flush_interval=7)
    async with ChatLedger(database_url, settings=settings) as ledger, ledger.stream(session_id) as stream:
        lasts = await connection.fetchval("select expires_at - began_at from chatledger.active_streams")
        assert lasts.total_seconds() == 7200
        assert stream._flush_interval == 7


@pytest.mark.parametrize("flush_interval", [0, 3600])
@pytest.mark.parametrize(
    ("recording", "message", "usage"),
    [
        ("text", {"content": WHOLE}, TOKENS),
        ("text without usage", {"content": WHOLE}, Usage()),
        ("text cut short", {"content": WHOLE}, TOKENS),  # by max_tokens: that is all that there will be
        ("calls", {"tool_calls": [OSLO, ROME]}, TOKENS),
        ("calls after text", {"content": WHOLE, "tool_calls": [OSLO, ROME]}, TOKENS),
        ("refusal", {"content": "", "refusal": "I'm sorry, I can't help with that."}, TOKENS),
        ("emoji", {"content": "Ahoj 👩\u200d🚀 ok"}, TOKENS),
        ("azure", {"content": WHOLE}, TOKENS),
        ("reasoning", {"content": "Hello!", "reasoning_content": "The user greets me."}, TOKENS),
        ("usage in every chunk", {"content": "Hello!"}, TOKENS),
        ("usage in an empty choice", {"content": WHOLE}, TOKENS),
    ],
)
async def test_an_answer_is_one_message_with_its_usage(
    ledger: ChatLedger,
    session_id: str,
    openai: AsyncOpenAI,
    recording: str,
    message: dict[str, Any],
    usage: Usage,
    flush_interval: float,
) -> None:
    async with ledger.stream(session_id, user_id="u1", flush_interval=flush_interval) as stream:
        await answer(stream, openai, recording)
    session = await load(ledger, session_id)
    assert [said(stored) for stored in session.messages[1:]] == [{"role": "assistant"} | message]
    assert session.total_usage.total_tokens == usage.total_tokens
    assert stream.saved_message_count == session.message_count == 2
    assert await ledger.verify_session(session_id) == []


async def test_it_is_there_while_it_grows_in_one_row(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async with ledger.stream(session_id, flush_interval=0.01) as stream:
        answering = asyncio.create_task(answer(stream, openai, "held text"))
        await until_saved(ledger, session_id, WHOLE)  # also what came last, while the model is silent
        [growing] = await answers(ledger, session_id)
        assert growing.metadata == INTERRUPTED
        server.go_on.set()
        await answering
    [whole] = await answers(ledger, session_id)
    assert (whole.message_id, whole.sequence, whole.content) == (growing.message_id, 1, f"{WHOLE} Go on.")
    assert not whole.metadata


async def test_it_is_saved_at_most_every_so_often(ledger: ChatLedger, session_id: str, openai: AsyncOpenAI) -> None:
    before = (await load(ledger, session_id)).version
    async with ledger.stream(session_id, flush_interval=3600) as stream:
        await answer(stream, openai, "calls after text")
    # Appended with the first text; amended, and its usage added, at the end.
    assert (await load(ledger, session_id)).version == before + 3


async def test_half_a_character_is_made_whole_by_the_other_half(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async with ledger.stream(session_id, flush_interval=0) as stream:
        answering = asyncio.create_task(answer(stream, openai, "halves"))
        await until_saved(ledger, session_id, "🙂\ufffd")
        server.go_on.set()
        await answering
    assert [message.content for message in await answers(ledger, session_id)] == ["🙂🚀!"]


async def test_a_loop_with_tools_is_a_message_each_in_order(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI
) -> None:
    async with ledger.stream(session_id) as stream:
        await answer(stream, openai, "calls")
        [receipt] = await stream.append({"role": "tool", "tool_call_id": "call_oslo", "content": "3"})
        await stream.append([ChatMessage(role="tool", tool_call_id="call_rome", content="19")])
        await answer(stream, openai, "answer after calls")
    session = await load(ledger, session_id)
    assert [message.role for message in session.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert receipt.sequence == 2
    assert session.messages[-1].content == "Oslo 3°, Rome 19°."
    assert session.total_usage.total_tokens == 29 + 41
    assert stream.saved_message_count == 5


async def test_completions_without_anything_in_between_are_messages_of_their_own(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI
) -> None:
    async with ledger.stream(session_id, flush_interval=3600) as stream:
        await answer(stream, openai, "usage in every chunk")
        await answer(stream, openai, "answer after calls")
        await answer(stream, openai, "answer after calls")  # a server that gives each completion the same id
    contents = [message.content for message in await answers(ledger, session_id)]
    assert contents == ["Hello!", "Oslo 3°, Rome 19°.", "Oslo 3°, Rome 19°."]
    assert (await load(ledger, session_id)).total_usage.total_tokens == 29 + 41 + 41


# Cut off, in every way


async def check_interrupted(ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, text: str = WHOLE) -> None:
    """What had arrived is there and marked; the history is valid; the next stream begins cleanly."""
    [cut] = await answers(ledger, session_id)
    assert (cut.content, cut.metadata) == (text, INTERRUPTED)
    repairs: list[Any] = []
    sent = (await load(ledger, session_id)).to_openai_messages(on_repair=repairs.append)
    assert [message["role"] for message in sent] == ["user", "assistant"]
    assert repairs == []
    async with ledger.stream(session_id) as stream:
        await answer(stream, openai, "text")
    assert [message.metadata or {} for message in await answers(ledger, session_id)] == [INTERRUPTED, {}]


async def test_a_model_that_breaks_off(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    server.go_on.set()
    with pytest.raises(BROKEN_OFF):
        async with ledger.stream(session_id) as stream:
            await answer(stream, openai, "cut text")
    await check_interrupted(ledger, session_id, openai)


async def test_a_call_that_was_cut_off_is_not_stored(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    server.go_on.set()
    with pytest.raises(BROKEN_OFF):
        async with ledger.stream(session_id) as stream:
            await answer(stream, openai, "cut calls")
    [cut] = await answers(ledger, session_id)
    assert (cut.tool_calls, cut.metadata) == ([OSLO], INTERRUPTED)
    sent: list[Any] = [*(await load(ledger, session_id)).to_openai_messages()]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[-1]["tool_call_id"] == "call_oslo"


async def test_a_chunk_that_openai_cannot_make_sense_of(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI
) -> None:
    senseless = ChatCompletionChunk.model_validate(chunk_of({"citations": [{"url": "https://example.com"}]}))

    async def streaming() -> None:
        async with ledger.stream(session_id) as stream:
            for text in TEXT:
                await stream.feed(ChatCompletionChunk.model_validate(text))
            await stream.feed(senseless)
            await stream.feed(senseless)

    with pytest.raises(InvalidArgument, match=r"the chunk cannot be added .*RuntimeError"):
        await streaming()
    await check_interrupted(ledger, session_id, openai)


async def test_a_task_that_is_cancelled(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    arrived = asyncio.Event()

    async def answering() -> None:
        async with ledger.stream(session_id, flush_interval=3600) as stream:
            async for chunk in await openai.chat.completions.create(model="cut text", messages=[], stream=True):
                await stream.feed(chunk)
                if chunk.choices and chunk.choices[0].delta.content == " help?":
                    arrived.set()

    task = asyncio.create_task(answering())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_interrupted(ledger, session_id, openai)


async def test_a_time_limit_of_the_callers(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async def streaming() -> None:
        async with asyncio.timeout(None) as limit, ledger.stream(session_id) as stream:
            answering = asyncio.create_task(answer(stream, openai, "cut text"))
            await until_saved(ledger, session_id, WHOLE)
            limit.reschedule(0)
            await answering

    with pytest.raises(TimeoutError):
        await streaming()
    await check_interrupted(ledger, session_id, openai)


async def test_a_body_that_ends_too_soon(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async with ledger.stream(session_id) as stream:
        async for chunk in await openai.chat.completions.create(model="held text", messages=[], stream=True):
            await stream.feed(chunk)
            if chunk.choices and chunk.choices[0].delta.content == " help?":
                break
        server.go_on.set()
    await check_interrupted(ledger, session_id, openai)


ANSWERING = """
import asyncio, sys
from openai import AsyncOpenAI
from chatledger import ChatLedger

async def main(session_id, base_url):
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    async with ChatLedger() as ledger, ledger.stream(session_id, ttl=5, flush_interval=0.01) as stream:
        async for chunk in await client.chat.completions.create(model="cut text", messages=[], stream=True):
            await stream.feed(chunk)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer, database_url: str
) -> None:
    environment = os.environ | {"CHATLEDGER_DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ANSWERING, session_id, server.base_url, env=environment
    )
    await until_saved(ledger, session_id, WHOLE)
    process.kill()
    await process.wait()
    with pytest.raises(StreamBusy) as busy:
        await ledger.stream(session_id).__aenter__()
    assert busy.value.holder.endswith(f":{process.pid}")
    async with ledger.stream(session_id, wait=30):
        pass
    await check_interrupted(ledger, session_id, openai)


async def test_connections_that_the_server_ends_cost_nothing(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer, connect: Connect
) -> None:
    killer = await connect()
    async with ledger.stream(session_id, flush_interval=0) as stream:
        answering = asyncio.create_task(answer(stream, openai, "held text"))
        await until_saved(ledger, session_id, WHOLE)
        await killer.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        server.go_on.set()
        await answering
    [whole] = await answers(ledger, session_id)
    assert said(whole) == {"role": "assistant", "content": f"{WHOLE} Go on."}


@pytest.mark.parametrize("times", [1, 3])
async def test_answers_of_the_database_that_got_lost(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    async with answers_lost(monkeypatch, "save_session", times) as lost, ledger.stream(session_id) as stream:
        await answer(stream, openai, "calls after text")
    assert len(lost) == times
    session = await load(ledger, session_id)
    assert said(session.messages[1]) == {"role": "assistant", "content": WHOLE, "tool_calls": [OSLO, ROME]}
    assert (session.usage, session.message_count) == ([TOKENS], 2)


async def test_a_save_whose_outcome_is_unknown_is_not_its_own_conflict(
    database_url: str, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came since is saved on top of what may be stored."""
    async with ChatLedger(database_url, settings=Settings(retry_deadline=0)) as ledger:
        async with ledger.stream(session_id, flush_interval=0) as stream:
            for text in ("One", ", two", ", three"):
                async with answers_lost(monkeypatch, "save_session") as lost:
                    await stream.feed(ChatCompletionChunk.model_validate(chunk_of({"content": text})))

                    async def is_lost(lost: list[str] = lost) -> bool:
                        return len(lost) == 1

                    await until(is_lost)
        assert [message.content for message in await answers(ledger, session_id)] == ["One, two, three"]


# Others write meanwhile


async def test_g4_tool_calls_that_others_add_to_the_growing_message_stay(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async with ledger.stream(session_id, flush_interval=0) as stream:
        answering = asyncio.create_task(answer(stream, openai, "held text"))
        await until_saved(ledger, session_id, WHOLE)
        await ledger.add_tool_call(session_id, SEARCH)
        await stream.add_tool_call(OSLO)
        await ledger.append_messages(session_id, [{"role": "tool", "tool_call_id": "call_1", "content": "42"}])
        [growing, _] = await answers(ledger, session_id)
        await ledger.amend_message(session_id, growing.message_id, {"metadata": {"rating": 5}})
        server.go_on.set()
        await answering
    [whole, result] = await answers(ledger, session_id)
    assert (whole.content, whole.tool_calls, whole.metadata) == (f"{WHOLE} Go on.", [SEARCH, OSLO], {"rating": 5})
    assert result.content == "42"
    assert stream.saved_message_count == 3


async def test_g4_a_text_that_others_edit_while_it_grows_stays_as_they_left_it(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id, flush_interval=0) as stream:
            answering = asyncio.create_task(answer(stream, openai, "held text"))
            await until_saved(ledger, session_id, WHOLE)
            [growing] = await answers(ledger, session_id)
            await ledger.amend_message(session_id, growing.message_id, {"content": "redacted"})
            server.go_on.set()
            await answering
            await too_long()

    with pytest.raises(AmendConflict):
        await streaming()
    await check_interrupted(ledger, session_id, openai, "redacted")


async def test_a_growing_message_that_others_truncate_away_is_not_found(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, server: OpenAIServer
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id, flush_interval=0) as stream:
            answering = asyncio.create_task(answer(stream, openai, "held text"))
            await until_saved(ledger, session_id, WHOLE)
            await ledger.truncate_session(session_id, 1)
            server.go_on.set()
            await answering
            await too_long()

    with pytest.raises(MessageNotFound):
        await streaming()
    assert await answers(ledger, session_id) == []


async def test_tasks_share_a_stream(ledger: ChatLedger, session_id: str, openai: AsyncOpenAI) -> None:
    async with ledger.stream(session_id, flush_interval=0) as stream:

        async def callback(number: int) -> None:
            for nth in range(5):
                before = stream.saved_message_count
                [receipt] = await stream.append({"role": "tool", "tool_call_id": f"{number}/{nth}", "content": "ok"})
                assert before < receipt.sequence + 1 <= stream.saved_message_count

        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(callback(number))
            tasks.create_task(answer(stream, openai, "emoji"))
        assert stream.saved_message_count == (await load(ledger, session_id)).message_count
    session = await load(ledger, session_id)
    assert stream.saved_message_count == len(session.messages) == 52
    assert sum(message.role == "assistant" for message in session.messages) == 1


async def test_what_is_appended_comes_behind_what_was_fed(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI
) -> None:
    async with ledger.stream(session_id, flush_interval=3600) as stream:
        await answer(stream, openai, "text")
        await stream.append({"role": "user", "content": "and?"})
        assert [m.content for m in await answers(ledger, session_id)] == [WHOLE, "and?"]


async def test_a_message_that_is_refused_does_not_end_the_stream(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI
) -> None:
    async with ledger.stream(session_id) as stream:
        with pytest.raises(InvalidMessage):
            await stream.append({"role": "tool", "content": "whose?"})
        with pytest.raises(InvalidMessage):
            await stream.add_tool_call({"id": "c"})
        await answer(stream, openai, "text")
    assert [m.content for m in await answers(ledger, session_id)] == [WHOLE]


async def test_other_calls_of_the_ledger_take_the_fence(ledger: ChatLedger, session_id: str) -> None:
    async with ledger.stream(session_id) as stream:
        await ledger.append_messages(session_id, [{"role": "user", "content": "hi"}], fence=stream.fence)
    with pytest.raises(StaleFence):
        await ledger.append_messages(session_id, [{"role": "user", "content": "hi"}], fence=stream.fence)


async def test_what_is_fed_to_a_stream_that_was_left_is_refused(ledger: ChatLedger, session_id: str) -> None:
    stream = ledger.stream(session_id)
    chunk = ChatCompletionChunk.model_validate(TEXT[1])

    async def check_refused() -> None:
        message = {"role": "user", "content": "late"}
        for write in (stream.feed(chunk), stream.append(message), stream.add_tool_call(OSLO), stream.flush()):
            with pytest.raises(ChatLedgerError, match="inside `async with`"):
                await write

    await check_refused()
    async with stream:
        await stream.feed(chunk)
    await check_refused()
    assert [message.content for message in await answers(ledger, session_id)] == ["Hello"]


# One at a time


async def test_g7_a_second_one_is_told_who_holds_it(ledger: ChatLedger, session_id: str) -> None:
    async with ledger.stream(session_id, holder="the first tab"):
        with pytest.raises(StreamBusy) as busy:
            await ledger.stream(session_id).__aenter__()
        assert busy.value.holder == "the first tab"
        assert busy.value.expires_at.utcoffset() is not None
    async with ledger.stream(session_id):
        pass


async def test_a_second_one_may_wait(ledger: ChatLedger, session_id: str) -> None:
    order = []

    async def second() -> None:
        async with ledger.stream(session_id, wait=30):
            order.append("second")

    async with ledger.stream(session_id):
        with pytest.raises(StreamBusy):
            await ledger.stream(session_id, wait=0.1).__aenter__()
        waiting = asyncio.create_task(second())
        order.append("first")
    await waiting
    assert order == ["first", "second"]


async def test_a_user_may_have_so_many(ledger: ChatLedger, session_id: str) -> None:
    other = await ledger.create_session(user_id="u1")
    async with ledger.stream(session_id, max_streams=1):
        with pytest.raises(TooManyStreams):
            await ledger.stream(other.session_id, max_streams=1).__aenter__()
        async with ledger.stream(other.session_id, max_streams=2):
            pass


async def test_g8_a_session_of_another_user_is_not_there(ledger: ChatLedger, session_id: str) -> None:
    for missing in (ledger.stream(session_id, user_id="u2"), ledger.stream("none")):
        with pytest.raises(SessionNotFound):
            await missing.__aenter__()


@pytest.mark.parametrize("given", [{"ttl": 0}, {"ttl": 100_000}, {"holder": ""}, {"max_streams": 0}])
async def test_bad_arguments_are_refused(ledger: ChatLedger, session_id: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await ledger.stream(session_id, **given).__aenter__()


def test_settings_give_no_lease_that_the_database_would_refuse() -> None:
    with pytest.raises(ValueError, match="stream_ttl"):
        Settings(stream_ttl=86_401)


async def test_a_connection_of_the_callers_cannot_have_one(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    with pytest.raises(ChatLedgerError, match="needs a pool"):
        ChatLedger(connection).stream("s1")


async def test_a_pool_of_the_callers_can(database_url: str, session_id: str, openai: AsyncOpenAI) -> None:
    async with (
        asyncpg.create_pool(database_url, min_size=0, max_size=2) as pool,
        ChatLedger(pool) as ledger,
        ledger.stream(session_id, ttl=6) as stream,
    ):
        await answer(stream, openai, "text")
        async with pool.acquire() as watcher:
            await until_renewed(watcher)


async def test_beginning_whose_answer_got_lost_is_not_held_up_by_itself(
    ledger: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answers_lost(monkeypatch, "begin_stream") as lost, ledger.stream(session_id) as stream:
        assert lost == ["begin_stream"]
        assert stream.fence > 0


async def test_a_beginning_that_is_cancelled_leaves_the_session_free(
    ledger: ChatLedger, session_id: str, connect: Connect
) -> None:
    holder, watcher = await connect(), await connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from chatledger.sessions where id = $1 for no key update", session_id)
    beginning = asyncio.create_task(ledger.stream(session_id).__aenter__())

    await until_waiting(watcher)
    beginning.cancel()
    await transaction.rollback()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert await watcher.fetchval("select count(ended_at) from chatledger.streams") == 1  # it had been begun
    async with ledger.stream(session_id):
        pass


# The heartbeat


async def test_a_lease_is_renewed_while_the_pool_is_busy(database_url: str, session_id: str, connect: Connect) -> None:
    holder, watcher = await connect(), await connect()
    async with ChatLedger(database_url, settings=Settings(pool_size=1)) as ledger:
        busy = await ledger.create_session()
        async with ledger.stream(session_id, ttl=6):
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("select from chatledger.sessions where id = $1 for no key update", busy.session_id)
            # The only connection waits for a lock, and others wait for the connection.
            waiting = [
                asyncio.create_task(ledger.append_messages(busy.session_id, [{"role": "user", "content": "hi"}]))
                for _ in range(5)
            ]
            try:
                await until_renewed(watcher)
            finally:
                await transaction.rollback()
                await asyncio.gather(*waiting)


async def test_a_lease_is_renewed_while_the_event_loop_is_busy(
    ledger: ChatLedger, session_id: str, connect: Connect
) -> None:
    watcher = await connect()

    async def work() -> None:
        while True:
            sum(range(5_000))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work()) for _ in range(50)]
    try:
        async with ledger.stream(session_id, ttl=6):
            await until_renewed(watcher)
    finally:
        for task in tasks:
            task.cancel()


async def test_a_connection_that_the_heartbeat_lost_is_replaced(
    ledger: ChatLedger, session_id: str, connect: Connect
) -> None:
    killer = await connect()
    async with ledger.stream(session_id, ttl=6):
        await until_renewed(killer)
        killed = await killer.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and query ~ 'renew_stream'"
        )
        assert len(killed) == 1
        await until_renewed(killer)


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("select chatledger.begin_stream($1, 'operator', p_force => true)", StaleFence),
        ("select chatledger.delete_session($1)", SessionNotFound),
    ],
)
async def test_g7_a_holder_who_lost_the_lease_is_cancelled(
    ledger: ChatLedger,
    session_id: str,
    connection: asyncpg.Connection[asyncpg.Record],
    sql: str,
    error: type[Exception],
) -> None:
    stream = ledger.stream(session_id, ttl=6)

    async def streaming() -> None:
        async with stream:
            await connection.execute(sql, session_id)
            await too_long()

    with pytest.raises(error):
        await streaming()
    assert stream.lost
    this_task = asyncio.current_task()
    assert this_task is not None
    assert this_task.cancelling() == 0
    for write in (stream.append({"role": "user", "content": "late"}), stream.flush(), stream.add_tool_call(OSLO)):
        with pytest.raises(error):
            await write


async def test_g7_so_is_one_whose_lease_ran_out(
    ledger: ChatLedger,
    session_id: str,
    connection: asyncpg.Connection[asyncpg.Record],
    openai: AsyncOpenAI,
    server: OpenAIServer,
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id, flush_interval=0) as stream:
            answering = asyncio.create_task(answer(stream, openai, "held text"))
            await until_saved(ledger, session_id, WHOLE)
            await run_out(connection, session_id)
            async with ledger.stream(session_id):
                server.go_on.set()
                await answering  # its next save tells
                await too_long()

    with pytest.raises(StaleFence):
        await streaming()
    await check_interrupted(ledger, session_id, openai)


async def test_g7_one_that_cannot_renew_in_time_stops_by_its_own_clock(
    ledger: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(*_: Any) -> None:
        raise ConnectionResetError

    replace_call(monkeypatch, "renew_stream", unanswered)
    stream = ledger.stream(session_id, ttl=0.2)

    async def streaming() -> None:
        async with stream:
            await too_long()

    with pytest.raises(StaleFence, match="could not be renewed"):
        await streaming()
    assert stream.lost


async def test_g7_a_write_tells_its_caller_first(
    ledger: ChatLedger, session_id: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id) as stream:
            await run_out(connection, session_id)
            with pytest.raises(StaleFence):
                await stream.append({"role": "user", "content": "late"})
            assert stream.lost
            with pytest.raises(StaleFence):
                await asyncio.create_task(stream.flush())

    with pytest.raises(StaleFence):  # also when the body has seen it
        await streaming()
    assert await answers(ledger, session_id) == []


async def test_an_error_of_the_bodys_own_goes_first(
    ledger: ChatLedger, session_id: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id, ttl=0.3):
            await run_out(connection, session_id)
            try:
                await too_long()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError):
        await streaming()


async def test_a_cancellation_by_others_goes_first(
    ledger: ChatLedger, session_id: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    async def streaming() -> None:
        async with ledger.stream(session_id, ttl=0.3):
            await run_out(connection, session_id)
            try:
                await too_long()
            except asyncio.CancelledError:
                task.cancel()  # the lease is lost, and now this
                await too_long()

    task = asyncio.create_task(streaming())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_the_lease_is_given_back_also_after_a_cancellation_while_leaving(
    ledger: ChatLedger, session_id: str, openai: AsyncOpenAI, connect: Connect
) -> None:
    holder, watcher = await connect(), await connect()
    transaction = holder.transaction()

    async def streaming() -> None:
        async with ledger.stream(session_id, flush_interval=3600) as stream:
            await answer(stream, openai, "text")
            await stream.flush()
            await answer(stream, openai, "answer after calls")
            await transaction.start()
            await holder.execute("select from chatledger.sessions where id = $1 for no key update", session_id)

    task = asyncio.create_task(streaming())

    await until_waiting(watcher)
    task.cancel()
    await asyncio.sleep(0)
    await transaction.rollback()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [message.content for message in await answers(ledger, session_id)] == [WHOLE, "Oslo 3°, Rome 19°."]
    async with ledger.stream(session_id):
        pass


def test_usage_of_the_recordings_is_what_the_tests_expect() -> None:
    assert Usage.model_validate(USAGE) == TOKENS
