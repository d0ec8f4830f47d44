"""The command bench: how fast this database takes and gives messages."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer
from rich.table import Table

from chatledger.cli.common import Json, app, errors, output, run
from chatledger.ledger import ChatLedger
from chatledger.models.message import ChatMessage

_TEXT = "What should I pack for a week in Oslo at the end of November? " * 3
_LOADED = 1000
Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one kind of call came to."""

    what: str
    calls_per_second: float
    median_ms: float
    p95_ms: float


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each kind of call.")] = 3.0,
    writers: Annotated[int, typer.Option(min=1, help="How many call at once.")] = 16,
    as_json: Json = False,
) -> None:
    """Measure appending and loading on this database, in sessions of its own that it deletes afterwards."""

    async def work(ledger: ChatLedger) -> None:
        sessions = [(await ledger.create_session(title="chatledger bench")).session_id for _ in range(writers + 1)]
        try:
            results = await _measure(ledger, sessions, seconds)
        finally:
            for session_id in sessions:
                await ledger.delete_session(session_id)
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(result) for result in results]))
            return
        table = Table("call", "calls/s", "median ms", "95 % within ms", box=None)
        for result in results:
            table.add_row(
                result.what, f"{result.calls_per_second:,.0f}", f"{result.median_ms:.2f}", f"{result.p95_ms:.2f}"
            )
        output.print(table)

    run(work)


async def _measure(ledger: ChatLedger, sessions: list[str], seconds: float) -> list[Measured]:
    long_session, *own = sessions
    await ledger.append_messages(long_session, _messages(_LOADED))

    async def append(session_id: str, count: int) -> None:
        await ledger.append_messages(session_id, _messages(count))

    async def load() -> None:
        await ledger.get_session(long_session)

    kinds: list[tuple[str, list[Call]]] = [
        (f"load {_LOADED:,} messages", [load]),
        (f"append 1 message, {len(own)} sessions at once", [partial(append, s, 1) for s in own]),
        (f"append 10 messages, {len(own)} sessions at once", [partial(append, s, 10) for s in own]),
        (f"append 1 message, {len(own)} writers on one session", [partial(append, long_session, 1)] * len(own)),
    ]
    results = []
    with errors.status("measuring") as progress:
        for what, callers in kinds:
            progress.update(f"measuring: {what}")
            results.append(await _repeat(what, callers, seconds))
    return results


async def _repeat(what: str, callers: list[Call], seconds: float) -> Measured:
    took: list[float] = []
    began = time.perf_counter()

    async def caller(call: Call) -> None:
        while (start := time.perf_counter()) < began + seconds:
            await call()
            took.append(time.perf_counter() - start)

    await asyncio.gather(*map(caller, callers))
    per_second = len(took) / (time.perf_counter() - began)
    return Measured(
        what,
        round(per_second, 1),
        round(1000 * statistics.median(took), 3),
        round(1000 * sorted(took)[int(len(took) * 0.95)], 3),
    )


def _messages(count: int) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=_TEXT) for _ in range(count)]
