"""What a client and its backend hold does not grow with what has gone through them, refused or stored."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic_core import from_json

from chatledger import ChatLedger, ChatSession, InvalidMessage, Settings
from tests.helpers.following import listener_of
from tests.helpers.messages import user
from tests.helpers.openai_server import chunk
from tests.helpers.waiting import until

SESSIONS = 60
"""So many come and go in a round."""
MARGIN = 20_000
"""Bytes: less than the smallest thing that could be left behind by each session of two rounds."""


async def one_session(ledger: ChatLedger) -> None:
    session = await ledger.save_session(ChatSession.new(user_id="u1"))
    session_id = session.session_id
    # While the first is under way the others wait, and go in one call; one of them is refused.
    appends = [ledger.append_messages(session_id, [user()]) for _ in range(4)]
    refused = ledger.append_messages(session_id, [{"role": "odd", "content": "x" * 10_000}])
    await asyncio.gather(*appends, refused, return_exceptions=True)
    async with aclosing(ledger.follow(session_id)) as events:
        await anext(events)
    async with ledger.stream(session_id) as stream:
        await stream.feed(ChatCompletionChunk.model_validate(chunk({"content": "Hello"}, "stop")))
    loaded = await ledger.get_session(session_id)
    assert loaded is not None
    loaded.messages.append(user())
    await ledger.save_session(loaded)
    await ledger.delete_session(session_id)


async def a_round(ledger: ChatLedger) -> None:
    await asyncio.gather(*(one_session(ledger) for _ in range(SESSIONS)))
    session = await ledger.create_session()
    for bad in ({"role": "odd", "content": "x" * 50_000_000}, {"role": "user", "metadata": {"x" * 5_000_000: {1}}}):
        with pytest.raises(InvalidMessage):
            await ledger.append_messages(session.session_id, [bad])
    await until(lambda: listener_of(ledger)._task is None)  # nobody follows any more


async def drop_cancelled_timers() -> None:
    # The event loop keeps the handles of up to a hundred cancelled timers, and lets all go once they are more.
    loop = asyncio.get_running_loop()
    for timer in [loop.call_later(3600, int) for _ in range(200)]:
        timer.cancel()
    await asyncio.sleep(0)


async def held_by_backend(ledger: ChatLedger) -> int:
    return int(await ledger._run(lambda c: c.fetchval("select sum(total_bytes) from pg_backend_memory_contexts")))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    # pydantic's parser keeps so many short strings, and no more: let it have them from the start.
    from_json(json.dumps([f"a string as long as an id: {number:09}" for number in range(100_000)]))
    yield
    tracemalloc.stop()


async def test_neither_client_nor_backend_grows_with_what_went_through(database_url: str, traced: None) -> None:
    async with ChatLedger(database_url, settings=Settings(pool_size=1)) as ledger:
        held = []
        for _ in range(4):
            await a_round(ledger)
            backend = await held_by_backend(ledger)
            await drop_cancelled_timers()
            gc.collect()
            held.append((tracemalloc.get_traced_memory()[0], backend))
    (client, backend), *_, (client_after, backend_after) = held[1:]  # the first one fills caches
    assert client_after - client < MARGIN
    assert backend_after - backend < MARGIN
