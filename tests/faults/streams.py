"""Processes that fight for one session's stream, and a check of what each recorded against what is stored.

    python -m tests.faults.streams DATABASE_URL FOLDER SECONDS PROCESSES [CLOCK]

Each process takes the lease over and over, by force at times, and writes: batches, a growing message, and by a plain
connection that carries the fence and knows of no heartbeat. It sleeps past its lease with its whole event loop, and
then goes on writing. It is killed at random, and another takes its place; the server's clock is set, where the folder
of one is given. Before each write and after its answer a line goes to the process's journal.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
from openai.types.chat import ChatCompletionChunk

from chatledger import ChatLedger, StaleFence, Stream, StreamBusy
from tests.faults.servers import Clock

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SESSION = "contested"
TTL = 0.25
ENOUGH = {"began": 10, "refused": 5, "killed": 3, "stored": 50}
"""What must have happened at least, however slow the machine."""


class Journal:
    """What a process did, line by line; what was written stays when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, what: str, which: object) -> None:
        os.write(self._file, f"{what} {which}\n".encode())


# One process


def fight(database_url: str, path: Path, seed: int) -> None:
    """Take the lease over and over, until killed."""
    asyncio.run(_fight(database_url, Journal(path), random.Random(seed)))


async def _fight(database_url: str, journal: Journal, chance: random.Random) -> None:
    with psycopg.connect(database_url, autocommit=True) as plain:
        async with ChatLedger(database_url) as ledger:
            while True:
                force, flush_interval = chance.random() < 0.1, chance.choice([0, 3600])
                stream = ledger.stream(SESSION, ttl=TTL, wait=5, force=force, flush_interval=flush_interval)
                try:
                    async with stream:
                        journal.note("began", stream.fence)
                        await _write(stream, plain, journal, chance)
                except (StaleFence, StreamBusy):
                    pass


async def _write(stream: Stream, plain: psycopg.Connection[Any], journal: Journal, chance: random.Random) -> None:
    words = 0
    for number in range(chance.randint(1, 12)):
        asleep = chance.random() < 0.2
        if asleep:
            time.sleep(chance.uniform(0, 2.5 * TTL))
        elif chance.random() < 0.2:
            await asyncio.sleep(chance.uniform(0, 2 * TTL))

        if asleep or chance.random() < 0.3:
            which = f"{stream.fence}:plain-{number}"
            journal.note("tried", which)
            journal.note("stored" if _append_plainly(plain, stream.fence, which) else "refused", which)
            continue
        if chance.random() < 0.5:
            which = f"{stream.fence}:batch-{number}"
            write: Awaitable[object] = stream.append(messages(which))
        else:
            which = f"{stream.fence}:word-{words}"
            words += 1
            await stream.feed(chunk(stream.fence, f"{which} "))
            write = stream.flush()
        journal.note("tried", which)
        try:
            await write
        except StaleFence:
            journal.note("refused", which)
            raise
        journal.note("stored", which)


def _append_plainly(plain: psycopg.Connection[Any], fence: int, which: str) -> bool:
    """Append without waking the event loop, so that nothing but the database can refuse it."""
    batch = [json.dumps(message) for message in messages(which)]
    try:
        plain.execute("select from chatledger.append_messages(%s, %s::jsonb[], p_fence => %s)", (SESSION, batch, fence))
    except psycopg.Error as error:
        if error.sqlstate != StaleFence.sqlstate:
            raise
        return False
    return True


def messages(which: str) -> list[dict[str, str]]:
    return [{"message_id": f"{which}/{place}", "role": "user", "content": ""} for place in "ab"]


def chunk(fence: int, text: str) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(
        {
            "id": f"completion-{fence}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "none",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
        }
    )


# All of them


def struggle(database_url: str, folder: Path, seconds: float, processes: int, clock: Clock | None) -> None:
    """Keep so many processes fighting for so long, and until enough has happened; kill some all the while."""
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    asyncio.run(_create_session(database_url))
    operator = Journal(folder / "operator")
    chance = random.Random(1)
    alive: list[BaseProcess] = []
    began_at, number = time.monotonic(), 0
    while time.monotonic() < began_at + seconds or not _enough(folder):
        if time.monotonic() > began_at + seconds + 120:
            raise TimeoutError(f"too little happened: {Counter(what for what, _ in _lines(folder))}")
        while len(alive) < processes:
            number += 1
            alive.append(context.Process(target=fight, args=(database_url, folder / f"process-{number}", number)))
            alive[-1].start()
        time.sleep(chance.uniform(0.2, 1.2))
        if clock is not None and chance.random() < 0.5:
            clock.set(chance.uniform(-2 * TTL, 2 * TTL))
            operator.note("set", "clock")
        if chance.random() < 0.3:
            asyncio.run(_take_over(database_url, operator))
        else:
            victim = alive.pop(chance.randrange(len(alive)))
            _kill(victim)
            operator.note("killed", victim.pid)
    for process in alive:
        _kill(process)


async def _create_session(database_url: str) -> None:
    async with ChatLedger(database_url) as ledger:
        await ledger.create_session(SESSION)


async def _take_over(database_url: str, journal: Journal) -> None:
    """Do what operators do in psql; append without a lease, as other services do."""
    connection = await asyncpg.connect(database_url)
    call = "select fence from chatledger.begin_stream($1, 'operator', '1 second', p_force => true)"
    fence = await connection.fetchval(call, SESSION)
    journal.note("began", fence)
    await connection.execute('select chatledger.append_messages($1, array[\'{"role": "user"}\']::jsonb[])', SESSION)
    await connection.execute("select chatledger.end_stream($1, $2)", SESSION, fence)
    await connection.close()


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    if process.exitcode is not None:
        raise RuntimeError(f"a process ended by itself, with {process.exitcode}")
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            what, _, which = line.partition(" ")
            yield what, which


def _enough(folder: Path) -> bool:
    happened = Counter(what for what, _ in _lines(folder))
    return all(happened[what] >= least for what, least in ENOUGH.items())


# The check


@dataclass
class Verdict:
    """What happened, and what of it must not have."""

    happened: Counter[str]
    problems: list[str] = field(default_factory=list)


async def check(database_url: str, folder: Path) -> Verdict:
    """Compare what the processes recorded with what is stored."""
    recorded: defaultdict[str, set[str]] = defaultdict(set)
    verdict = Verdict(Counter())
    for what, which in _lines(folder):
        verdict.happened[what] += 1
        if what == "began" and which in recorded[what]:
            verdict.problems.append(f"fence {which} was given out twice")
        recorded[what].add(which)

    async with ChatLedger(database_url) as ledger:
        verdict.problems += map(str, await ledger.verify_session(SESSION))
        session = await ledger.get_session(SESSION)
    assert session is not None
    found: set[str] = set()
    at_sequence: list[int] = []
    at_version: dict[int, int] = {}
    for message in session.messages:
        if message.role == "assistant":
            words = str(message.content).split()
            numbers = [int(word.rpartition("-")[2]) for word in words]
            if numbers != list(range(len(numbers))):
                verdict.problems.append(f"words are missing or twice: {message.content}")
            fence = int(words[0].partition(":")[0])
            found.update(words)
            if message.amended_version is not None:
                at_version[message.amended_version] = fence
        elif ":" in message.message_id:
            which, _, place = message.message_id.partition("/")
            fence = int(which.partition(":")[0])
            if place == "a":
                found.add(which)
        else:
            verdict.happened["without a lease"] += 1
            continue
        at_sequence.append(fence)

    if at_sequence != sorted(at_sequence):
        verdict.problems.append(f"writes of an older fence stand behind those of a newer one: {at_sequence}")
    in_order = [fence for _, fence in sorted(at_version.items())]
    if in_order != sorted(in_order):
        verdict.problems.append(f"amendments of an older fence came after those of a newer one: {in_order}")
    verdict.problems += [f"lost: {which}" for which in sorted(recorded["stored"] - found)]
    verdict.problems += [f"refused, and stored: {which}" for which in sorted(recorded["refused"] & found)]
    verdict.problems += [f"from nowhere: {which}" for which in sorted(found - recorded["tried"])]
    verdict.happened["answer lost, and stored"] = len(found - recorded["stored"])
    return verdict


if __name__ == "__main__":
    given_clock = Clock(Path(sys.argv[5])) if len(sys.argv) > 5 else None
    struggle(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), given_clock)
