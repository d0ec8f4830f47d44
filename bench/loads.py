"""Loads: a session as a ChatSession, against the bare fetch of its rows; and what is done with it in memory."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from rich.progress import track

from bench.appends import TEXT
from bench.medians import Medians
from bench.results import keep
from chatledger import ChatLedger, ChatMessage
from chatledger.models.changes import changes_of

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.postgres.connections import Pool

TITLE = "Loads, and what is done in memory"
MEMORY = "Memory of a loaded session"
FETCH, LOAD = "bare fetch", "load"
LENGTH, LONG = 2_000, 100_000
TEXTS, TURNS = f"{LENGTH:,} messages, texts", f"{LENGTH:,} messages, turns with tool calls"
ROWS = """
    select message_id, sequence, created_at, amended_version, role, name, tool_call_id, refusal, duration_ms, content,
        content_parts, tool_calls, function_call, metadata, extra
    from chatledger.messages where session_id = $1 order by sequence
"""


def texts(count: int) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=TEXT) for _ in range(count)]


def turns(count: int) -> list[ChatMessage]:
    """Four messages a turn, one of them with a tool call, one with metadata."""
    messages = []
    for n in range(count // 4):
        call = {"id": f"call_{n}", "type": "function", "function": {"name": "search", "arguments": '{"q": "Oslo"}'}}
        messages += [
            ChatMessage(role="user", content=TEXT),
            ChatMessage(role="assistant", tool_calls=[call]),
            ChatMessage(role="tool", tool_call_id=f"call_{n}", content=TEXT, metadata={"took": 1.5}),
            ChatMessage(role="assistant", content=TEXT),
        ]
    return messages


async def measure(pool: Pool, rounds: int, server: str, console: Console) -> None:
    """Fetch and load in turn, so many rounds, and keep the medians."""
    ledger = ChatLedger(pool)
    milliseconds = Medians()
    for kind, made in ((TEXTS, texts), (TURNS, turns)):
        session = await ledger.create_session()
        await ledger.append_messages(session.session_id, made(LENGTH))
        held = await ledger.get_session(session.session_id)
        assert held is not None

        async def fetch(session_id: str = session.session_id) -> Any:
            async with pool.acquire() as connection:
                return await connection.fetch(ROWS, session_id)

        async def load(session_id: str = session.session_id) -> Any:
            return await ledger.get_session(session_id)

        async def look(held: Any = held) -> Any:
            return changes_of(held, held._baseline)

        async def convert(held: Any = held) -> Any:
            return held.to_openai_messages()

        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            FETCH: fetch,
            LOAD: load,
            "look for changes": look,
            "to OpenAI": convert,
        }
        for _ in track(range(rounds), f"loads: {kind}", console=console):
            for way, work in ways.items():
                began = time.perf_counter()
                await work()
                milliseconds.add(kind, way, (time.perf_counter() - began) * 1000)

    keep(TITLE, "ms", milliseconds.by_what(), server, console)


async def measure_memory(pool: Pool, server: str, console: Console) -> None:
    """Hold the rows of a long session, then the session, and keep what each takes."""
    ledger = ChatLedger(pool)
    megabytes = Medians()
    for kind, made in (("texts", texts), ("turns with tool calls", turns)):
        session = await ledger.create_session()
        messages = made(LONG)
        for start in track(range(0, LONG, LENGTH), f"memory: {kind}", console=console):
            await ledger.append_messages(session.session_id, messages[start : start + LENGTH])
        del messages
        what = f"{LONG:,} messages, {kind}"
        megabytes.add(what, FETCH, await held_by(pool.fetch(ROWS, session.session_id)))
        megabytes.add(what, LOAD, await held_by(ledger.get_session(session.session_id)))
    keep(MEMORY, "MB", megabytes.by_what(), server, console)


async def held_by(work: Awaitable[Any]) -> float:
    """Return the megabytes of what the work returns."""
    gc.collect()
    tracemalloc.start()
    try:
        held = await work
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del held
    return size / 1e6
