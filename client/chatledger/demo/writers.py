"""The three kinds of writer, which append to one session at the same time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chatledger.demo.batches import Batch, make_writer
from chatledger.demo.progress import Place, Progress
from chatledger.errors import ChatLedgerError
from chatledger.ledger import ChatLedger
from chatledger.postgres.connections import password_of, without_password

BATCHES = 20
KILLED_AFTER = 8
"""Batches that the second process gets through before it is killed in the middle of the next."""
PACE = 0.15
"""Seconds between two batches of a writer, on average, so that one can watch."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to write."""

    database_url: str
    session_id: str
    user_id: str


class WriterFailed(ChatLedgerError):
    """A writer in another process gave up; says what it said."""


def make_writers(*, with_psql: bool) -> list[Progress]:
    """Return those who are going to write, none of whom has begun."""
    writers = [make_writer(f"task-{n}", "Python task", BATCHES) for n in range(1, 5)]
    writers.append(make_writer("process", "Python process", BATCHES))
    if with_psql:
        writers += [make_writer(f"psql-{n}", "psql", BATCHES) for n in range(1, 3)]
    return [Progress(writer) for writer in writers]


async def write_all(all_progress: list[Progress], ledger: ChatLedger, target: Target, psql: Path | None) -> None:
    """Let all of them write at once, until each is done or has failed."""
    # Python takes its time to start: the others wait for it, so that all are at it together.
    async with SecondProcess.started(target) as first, asyncio.TaskGroup() as group:
        for progress in all_progress:
            match progress.writer.kind:
                case "Python task":
                    work: Awaitable[None] = write_as_task(progress, ledger, target)
                case "Python process":
                    work = write_in_second_process(progress, first, target)
                case "psql":
                    assert psql is not None, "make_writers was told that there is one"
                    work = write_with_psql(progress, psql, target)
            group.create_task(_to_its_end(progress, work))


async def _to_its_end(progress: Progress, work: Awaitable[None]) -> None:
    # One who fails must not stop the others: the check says what is missing.
    try:
        await work
        progress.state = "done"
    except (ChatLedgerError, OSError) as error:
        progress.state = "failed"
        progress.error = str(error)


async def write_as_task(progress: Progress, ledger: ChatLedger, target: Target) -> None:
    """Write through the ledger of this process."""
    progress.state = "writing"
    for batch in progress.writer.batches:
        receipts = await ledger.append_messages(target.session_id, batch, user_id=target.user_id)
        progress.answered([Place(r.message_id, r.sequence, r.appended) for r in receipts])
        await asyncio.sleep(_pause())


async def write_in_second_process(progress: Progress, first: SecondProcess, target: Target) -> None:
    """Write in a second Python process; kill it in the middle of a batch, start another, and send everything again."""
    progress.state = "writing"
    before, broken_off = progress.writer.batches[:KILLED_AFTER], progress.writer.batches[KILLED_AFTER]
    for batch in before:
        progress.answered(await first.append(batch))
        await asyncio.sleep(_pause() / 2)
    await first.send(broken_off)
    await first.kill()  # whether its last batch is stored, nobody knows
    progress.state, progress.killed = "killed", True

    async with SecondProcess.started(target) as second:
        progress.state, progress.batches_done = "retrying", 0
        for batch in progress.writer.batches:
            progress.answered(await second.append(batch))
            await asyncio.sleep(_pause() / 2)


class SecondProcess:
    """A Python process with a ledger of its own, :mod:`chatledger.demo.process`, that appends what it is handed."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def started(cls, target: Target) -> AsyncIterator[SecondProcess]:
        """Start one and wait until it is ready; at the end it is killed, if it still runs.

        Raises:
            WriterFailed: It ended at once.
        """
        arguments = ("-m", "chatledger.demo.process", target.session_id, target.user_id)
        # The URL in the environment: a command line is for everybody to see, and there may be a password in it.
        async with _running(sys.executable, *arguments, CHATLEDGER_DATABASE_URL=target.database_url) as process:
            second = cls(process)
            await second._report("ready")
            yield second

    async def send(self, batch: Batch) -> None:
        """Hand it a batch and return when it is about to append it.

        Raises:
            WriterFailed: It ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(batch).encode() + b"\n")
        await self._report("sending")

    async def append(self, batch: Batch) -> list[Place]:
        """Hand it a batch and return what it was told.

        Raises:
            WriterFailed: It ended.
        """
        await self.send(batch)
        return [Place(*place) for place in json.loads(await self._report("stored"))]

    async def kill(self) -> None:
        """Kill it: SIGKILL, which no process can catch."""
        self._process.kill()
        await self._process.wait()

    async def _report(self, expected: str) -> str:
        assert self._process.stdout is not None
        word, _, rest = (await self._process.stdout.readline()).decode().partition(" ")
        if word.strip() != expected:
            raise WriterFailed(await _last_words(self._process))
        return rest


async def write_with_psql(progress: Progress, psql: Path, target: Target) -> None:
    """Write in psql, in plain SQL."""
    # Rows only, unaligned; stop at an error, and tell it in one line; nothing from ~/.psqlrc.
    options = ("-X", "-q", "-A", "-t", "-F", "|", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse")
    environment = {"PGCLIENTENCODING": "UTF8"}
    if password := password_of(target.database_url):  # not on the command line, which everybody can see
        environment["PGPASSWORD"] = password
    async with _running(psql, *options, without_password(target.database_url), **environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        progress.state = "writing"
        process.stdin.write(psql_script(progress.writer.batches, target).encode())
        process.stdin.close()
        for batch in progress.writer.batches:
            rows = [(await process.stdout.readline()).decode().rstrip("\n").split("|") for _ in batch]
            if any(len(row) != 4 for row in rows):
                break
            progress.answered([Place(row[0], int(row[1]), row[3] == "t") for row in rows])
        if await process.wait() or progress.batches_done < len(progress.writer.batches):
            raise WriterFailed(await _last_words(process))


def psql_script(batches: tuple[Batch, ...], target: Target) -> str:
    """Return the script: a call a batch, each a transaction of its own, with a pause after it."""
    lines = ["set standard_conforming_strings = on;"]
    for batch in batches:
        messages = ", ".join(_literal(json.dumps(message)) for message in batch)
        session, user = _literal(target.session_id), _literal(target.user_id)
        lines += [
            f"select * from chatledger.append_messages({session}, array[{messages}]::jsonb[], {user});",
            f"do $$ begin perform pg_sleep({_pause():.3f}); end $$;",
        ]
    return "\n".join([*lines, ""])


@asynccontextmanager
async def _running(program: str | Path, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # closes the pipes


async def _last_words(process: Process) -> str:
    assert process.stderr is not None
    if process.returncode is None:
        process.kill()  # it said something else than it should; its error output must end
    lines = (await process.stderr.read()).decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it ended without a word")


def _pause() -> float:
    return PACE * random.uniform(0.5, 1.5)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
