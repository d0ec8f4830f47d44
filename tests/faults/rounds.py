"""A round: some sessions, writers and readers of all kinds, some faults among them; then the check."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.helpers.valkey import Server as Valkey

from . import checker, writers
from .faults import DISTURBED
from .history import BODY, Call, Row, Stored, calls_of, header_of
from .psql import Psql, PsqlReader, PsqlWriter
from .servers import PgBouncer, Postgres, Proxy, small_disk
from .writers import Job, Session

if TYPE_CHECKING:
    from .servers import Connection

ROOT = Path(__file__).parents[2]
# Faults that hit only who takes a certain way to Postgres.
_HITS = {"client-proxied": "answers_lost", "client-pooled": "pgbouncer_killed"}
PATIENCE = 120.0
"""Seconds after which a round counts as one that hangs."""


class Child:
    """A process of writers."""

    def __init__(self, job: Job, jobs: socket.socket) -> None:
        self.job = job
        self.lines: list[str] = []
        self.begun = asyncio.Event()
        self.pid = 0
        """0: it has not begun, or has ended."""
        self.ended_well = False
        """It came to its end, or was killed."""
        self._finished = False
        self._ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(jobs, [job.encoded()], [theirs.fileno()])

    async def collect(self) -> None:
        """Take down what it tells, until it ends."""
        reader, self._writer = await asyncio.open_connection(sock=self._ours, limit=1 << 24)
        try:
            self.pid = int(await reader.readline())
            if self._finished:
                self._writer.write(b"\n")
            with contextlib.suppress(ConnectionResetError):  # killed with our word unread: all it told was read before
                while (line := await reader.readline()).endswith(b"\n"):
                    if line == writers.DONE:
                        self.ended_well = True
                        break
                    self.lines.append(line.decode())
                    self.begun.set()
        finally:
            self._writer.close()  # whoever is still there ends with its next line
        self.pid = 0

    def finish(self) -> None:
        """Tell it that all faults are over."""
        self._finished = True
        if self.pid:
            self._writer.write(b"\n")

    def kill(self) -> None:
        if self.pid:
            self.ended_well = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Rig:
    """The servers of many rounds, and where their processes are forked from."""

    postgres: Postgres
    proxy: Proxy
    valkey: Valkey
    pgbouncer: PgBouncer | None
    jobs: socket.socket
    redis_turn: asyncio.Lock
    """One fault at a time for Redis."""
    ballast: Path | None = None
    """A file on the disk of Postgres, which is small, to fill it with; None: its disk is the machine's."""


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Start the servers, and stop them at the end."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(320))
        except OSError:
            disk = None
        postgres = Postgres(disk, settings={"max_wal_size": "48MB", "min_wal_size": "32MB"}, with_clock=True)
        stack.callback(postgres.close)
        await postgres.prepare()
        proxy = Proxy(postgres)
        await proxy.start()
        stack.push_async_callback(proxy.close)
        valkey = Valkey()
        stack.callback(valkey.close)
        pgbouncer = None
        if PgBouncer.program:
            pgbouncer = PgBouncer(postgres)
            stack.callback(pgbouncer.close)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            forker = subprocess.Popen([sys.executable, "-m", "tests.faults.writers"], stdin=theirs.fileno(), cwd=ROOT)
        stack.callback(forker.wait)
        stack.callback(ours.close)
        yield Rig(postgres, proxy, valkey, pgbouncer, ours, asyncio.Lock(), disk and disk / "ballast")


@dataclass(slots=True)
class Round:
    """What happened in a round."""

    seed: str
    faults: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class Running:
    """What a fault may get at while a round runs."""

    rig: Rig
    choice: Random
    sessions: list[Session]
    children: list[Child]
    start: Callable[[Job], None]

    def start_like(self, child: Child) -> None:
        """Start another process with the same job."""
        self.start(replace(child.job, name=f"{child.job.name}-again"))

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Connection]:
        """A connection that may do everything, as soon as there is one."""
        await self.rig.postgres.ready()
        async with self.rig.postgres.admin() as connection:
            yield connection


Fault = Callable[[Running], Any]


async def play(rig: Rig, seed: str, faults: Sequence[Fault], seconds: float = 0.5) -> Round:
    """Play one round: the same seed makes the same choices."""
    choice = Random(seed)
    result = Round(seed)
    prefix = f"r{seed}-"
    sessions = [
        Session(f"{prefix}kept", f"{prefix}ann"),
        Session(f"{prefix}cut", f"{prefix}bob", truncated=True),
        Session(f"{prefix}gone", f"{prefix}ann", deleted=True),
    ]
    async with rig.postgres.admin() as admin:
        for session in sessions:
            await admin.execute("select chatledger.create_session($1, $2)", session.id, session.user)

    jobs = _jobs(rig, seed, sessions, choice, {fault.__name__ for fault in faults})
    lines: list[str] = []
    bin_dir = rig.postgres.bin_dir
    url = rig.postgres.url()
    by_hand: list[PsqlWriter | PsqlReader] = [
        PsqlWriter("psql", Psql(bin_dir / "psql", url), sessions, seed, lines.append),
        PsqlReader("psql-reads", Psql(bin_dir / "psql", url), sessions, seed, lines.append),
    ]
    children: list[Child] = []

    async with _patience(children), asyncio.TaskGroup() as group:

        def start(job: Job) -> None:
            children.append(Child(job, rig.jobs))
            group.create_task(children[-1].collect())

        running = Running(rig, choice, sessions, children, start)
        for job in jobs:
            start(job)
        for one in by_hand:
            group.create_task(one.run())
        for child in children:
            await child.begun.wait()
        began = time.monotonic()
        moments = sorted(choice.random() * seconds * 0.8 for _ in faults)
        striking = []
        for moment, fault in zip(moments, faults, strict=True):
            await asyncio.sleep(max(0, began + moment - time.monotonic()))
            result.faults[fault.__name__] += 1
            striking.append(asyncio.create_task(_strike(fault, running)))
        await asyncio.gather(*striking)
        await asyncio.sleep(max(0, began + seconds - time.monotonic()))
        rig.proxy.to_lose = 0
        await rig.postgres.ready()
        if rig.pgbouncer is not None:
            rig.pgbouncer.ready()
        for child in children:
            child.finish()
        for one in by_hand:
            one.finish.set()

    for child in children:
        lines += child.lines
        if not child.ended_well:
            result.problems.append(f"{child.job.name} did not get its last appends through")
    result.calls = calls_of(lines)
    async with rig.postgres.admin() as admin:
        for session in sessions:
            stored = result.stored[session.id] = await _stored(admin, session)
            calls = [call for call in result.calls if call.session in (session.id, "")]
            result.problems += [f"{session.id}: {problem}" for problem in checker.violations(calls, stored)]
            for part in (stored, *stored.forks):
                if not part.deleted:
                    rows = await admin.fetch("select * from chatledger.verify_session($1)", part.session)
                    result.problems += [f"{part.session}: verify_session: {dict(row)}" for row in rows]
        ids = [part.session for stored in result.stored.values() for part in (stored, *stored.forks)]
        await admin.execute("delete from chatledger.sessions where id = any($1)", ids)
    return result


@asynccontextmanager
async def _patience(children: list[Child]) -> AsyncIterator[None]:
    """Wait no longer than that, and say for whom."""
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError as error:
        error.add_note(f"still there: {[child.job.name for child in children if child.pid] or 'psql'}")
        raise


async def _strike(fault: Fault, running: Running) -> None:
    with contextlib.suppress(*DISTURBED):
        await fault(running)


def _jobs(rig: Rig, seed: str, sessions: list[Session], choice: Random, faults: set[str]) -> list[Job]:
    """Who writes in a round, and on which way it gets to Postgres: two at random, or those whom a fault is to hit."""
    redis = rig.valkey.url
    ways: list[Job] = [
        Job("client-direct", "client", seed, rig.postgres.url(), redis, sessions, cancels=0.1),
        Job("client-proxied", "client", seed, rig.proxy.url, redis, sessions, tasks=1, cancels=0.05),
        Job(
            "client-timeouts", "client", seed,
            rig.postgres.url(lock_timeout="10", statement_timeout="25", idle_session_timeout="5"), redis, sessions,
        ),
        Job(
            "client-serializable", "client", seed,
            rig.postgres.url(default_transaction_isolation="serializable"), redis, sessions, tasks=1,
        ),
    ]  # fmt: skip
    if rig.pgbouncer is not None:
        ways.append(Job("client-pooled", "client", seed, rig.pgbouncer.url, redis, sessions, prepared_statements=False))
    hit = [way for way in ways if _HITS.get(way.name) in faults]
    others = [way for way in ways if way not in hit]
    direct = Job("direct", "direct", seed, choice.choice((rig.postgres.url(), rig.proxy.url)), None, sessions)
    return [direct, *hit, *choice.sample(others, 2 - len(hit))]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def _stored(admin: Connection, wanted: Session) -> Stored:
    """What is stored of a session and its forks, by plain queries."""
    session = await admin.fetchrow("select * from chatledger.sessions where id = $1", wanted.id)
    if session is None:
        return Stored(wanted.id, wanted.user)
    rows = await admin.fetch("select * from chatledger.messages where session_id = $1 order by sequence", wanted.id)
    # An append leaves the session's row alone: its last message says where the session is.
    last = [row for row in rows if not row["removed"]][-1:]
    usage = await admin.fetch("select * from chatledger.usage_records where session_id = $1", wanted.id)
    forks = await admin.fetch("select id from chatledger.sessions where forked_from = $1", wanted.id)
    return Stored(
        wanted.id,
        wanted.user,
        rows=[
            Row(
                row["sequence"],
                row["message_id"],
                {name: _value(row, name) for name in BODY if row[name] is not None},
                _microseconds(row["created_at"]),
                row["amended_version"],
                row["removed"],
            )
            for row in rows
        ],
        next_sequence=max(session["next_sequence"], *(row["sequence"] + 1 for row in last), 0),
        version=max(session["version"], *(row["version"] for row in last), 0),
        updated_at=_microseconds(max(session["updated_at"], *(row["created_at"] for row in last), EPOCH)),
        deleted=session["deleted_at"] is not None,
        header=header_of(session["title"], session["pinned"], session["total_tokens"], json.loads(session["metadata"])),
        usage={row["usage_id"]: row["total_tokens"] for row in usage},
        forks=[await _stored(admin, Session(fork["id"], wanted.user)) for fork in forks],
    )


def _value(row: asyncpg.Record, name: str) -> Any:
    return json.loads(row[name]) if name in ("tool_calls", "metadata") else row[name]


def _microseconds(moment: Any) -> int:
    return int(moment.timestamp()) * 1_000_000 + int(moment.microsecond)
