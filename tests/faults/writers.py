"""Writers and readers in Python, each in a process of its own that notes every call and may be killed at any moment.

Run with ``python -m``, this is the process that they are forked from, so that a new one is there in milliseconds: for
each job that arrives on its standard input, a socket, it forks a process that has the other end of a connection. There
the process tells its pid and then every call, a line each; the end of the connection is the end of the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

import asyncpg

from chatledger import ChatLedger, ChatLedgerError, ChatMessage, ChatSession, SessionHeader, Settings, Usage

from .history import Call, Json, Kind, Outcome, Recorder, fingerprint, header_of

DONE = b"done\n"  # the last line of a process that came to its end
LONGEST_CALL = 30.0
"""Seconds after which a call counts as one that never ends."""
GONE = "CL001"
ISOLATIONS: tuple[Literal["read_committed", "repeatable_read", "serializable"], ...] = (
    "read_committed", "read_committed", "repeatable_read", "serializable",
)  # fmt: skip
LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is written to, and what may be done to it besides."""

    id: str
    user: str
    truncated: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is to do."""

    name: str
    kind: Literal["client", "direct"]
    seed: str
    url: str
    redis_url: str | None
    sessions: list[Session]
    tasks: int = 2
    prepared_statements: bool = True
    cancels: float = 0.0
    """How many of its calls it cancels, as a share."""

    def encoded(self) -> bytes:
        """As it goes to the process."""
        return json.dumps(asdict(self)).encode()


def messages(name: str, choice: Random) -> list[Json]:
    """A batch of one to four new messages."""
    batch: list[Json] = []
    for index in range(choice.choice((1, 1, 2, 3, 4))):
        role = choice.choice(("user", "assistant"))
        message: Json = {"message_id": f"{name}-{index}", "role": role, "content": f"{name} {index} é"}
        if message["role"] == "assistant" and choice.random() < 0.2:
            message["tool_calls"] = [tool_call(f"own-{name}-{index}")]
        if choice.random() < 0.2:
            message["metadata"] = {"from": name}
        batch.append(message)
    return batch


def tool_call(call_id: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def seen(session: ChatSession | None) -> Json | None:
    """What a read notes of what it saw."""
    if session is None:
        return None
    return seen_header(session) | {
        "next_sequence": session.next_sequence, "messages": seen_messages(session.messages),
    }  # fmt: skip


def seen_messages(shown: Iterable[ChatMessage]) -> list[list[Any]]:
    return [[m.sequence, m.message_id, m.amended_version, fingerprint(m.model_dump())] for m in shown]


def seen_header(session: SessionHeader) -> Json:
    header = header_of(session.title, session.pinned, session.total_usage.total_tokens, session.metadata)
    return {"version": session.version, "header": header}


def header_change(name: str, choice: Random) -> Json:
    """What somebody wants of a session's header: some of a title, a pin and a key of the metadata."""
    wanted = {"title": name, "pinned": choice.random() < 0.5, name: "set"}
    return {key: value for key, value in wanted.items() if choice.random() < 0.4}


def told(error: BaseException) -> tuple[Outcome, str]:
    """What an exception says: whether the call was refused, and how it is named in the history."""
    if isinstance(error, ChatLedgerError):
        return ("refused" if error.sqlstate else "unknown"), error.sqlstate or type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        # Class 08 and shutdowns say nothing of what became of the call.
        return ("unknown" if code[:2] == "08" or code.startswith("57P0") else "refused"), code
    return "unknown", type(error).__name__


class Writer:
    """One who makes a call after the other, of random kinds, and most of those that were not acknowledged again."""

    def __init__(self, name: str, job: Job, recorder: Recorder, finish: asyncio.Event) -> None:
        self.name = name
        self.job = job
        self.recorder = recorder
        self.finish = finish
        self.choice = Random(f"{job.seed} {name}")
        self.number = 0

    def new_name(self) -> str:
        self.number += 1
        return f"{self.name}-{self.number}"

    async def run(self) -> None:
        while not self.finish.is_set():
            await self.one_thing(self.choice.choice(self.job.sessions))
            await asyncio.sleep(self.choice.random() * 0.02)
        for session in self.job.sessions:  # all is well again: it must go on
            batch = messages(self.new_name(), self.choice)
            async with asyncio.timeout(LONGEST_CALL):
                while (call := await self.append(session, batch)).outcome != "acknowledged" and call.error != GONE:
                    await asyncio.sleep(0.02)

    async def one_thing(self, session: Session) -> None:
        raise NotImplementedError

    async def append(self, session: Session, batch: list[Json]) -> Call:
        raise NotImplementedError

    async def append_until_known(self, session: Session) -> Call:
        """Append a new batch; when the answer is lost, again, perhaps with something new behind it."""
        batch = messages(self.new_name(), self.choice)
        for _ in range(3):
            call = await self.append(session, batch)
            if call.outcome == "acknowledged" and self.choice.random() < 0.9:
                break  # else: delivered once more
            if (call.error or "").startswith("CL"):
                break
            if self.choice.random() < 0.3:
                batch = batch + messages(self.new_name(), self.choice)
        return call


class ClientWriter(Writer):
    """Calls the Python client, in all its ways."""

    def __init__(self, name: str, job: Job, recorder: Recorder, finish: asyncio.Event, ledger: ChatLedger) -> None:
        super().__init__(name, job, recorder, finish)
        self.ledger = ledger
        self.own: dict[str, list[str]] = {session.id: [] for session in job.sessions}
        self.copies: dict[str, ChatSession | None] = {}
        # What was changed in a copy and was not told to be saved.
        self.headers: dict[str, Json] = {}
        self.usage: dict[str, list[tuple[str, int]]] = {}

    async def one_thing(self, session: Session) -> None:
        things = [
            (self.append_until_known, 8), (self.save, 6), (self.amend_metadata, 2), (self.amend_content, 2),
            (self.add_tool_call, 3), (self.update, 2), (self.record_usage, 2), (self.read, 2), (self.fork, 3),
            (self.truncate, 2 if session.truncated else 0), (self.delete, 1 if session.deleted else 0),
        ]  # fmt: skip
        thing, *_ = self.choice.choices([t for t, _ in things], [weight for _, weight in things])
        await thing(session)

    async def call(self, kind: Kind, session: Session, work: Coroutine[Any, Any, Any], **sent: Any) -> tuple[Call, Any]:
        """Make a call, or cancel it somewhere on its way, and note it; the answer is for the caller to note."""
        call = self.recorder.begin(kind, session.id, **sent)
        task = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(LONGEST_CALL):
                if self.choice.random() < self.job.cancels:
                    await asyncio.wait({task}, timeout=self.choice.random() ** 2 * 0.02)
                    task.cancel()
                return call, await task
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and (ours := asyncio.current_task()) and ours.cancelling():
                raise  # it was not call() that cancelled
            outcome, name = told(error)
            self.recorder.end(call, outcome, error=name)
            return call, None

    async def append(self, session: Session, batch: list[Json]) -> Call:
        work = self.ledger.append_messages(session.id, batch)
        call, receipts = await self.call("append", session, work, messages=batch)
        if call.end is None:
            self.recorder.end(call, "acknowledged", [[r.message_id, r.sequence, r.appended] for r in receipts])
            self.own[session.id] += [r.message_id for r in receipts if r.appended]
        return call

    async def save(self, session: Session) -> None:
        """Change a copy that may have been loaded long ago, and save it, some times."""
        for _ in range(self.choice.randrange(1, 4)):
            await self.save_once(session)

    async def save_once(self, session: Session) -> None:
        copy = self.copies.get(session.id)
        if copy is None:
            copy = self.copies[session.id] = await self.read(session)
            self.headers[session.id], self.usage[session.id] = {}, []
            if copy is None:
                return
        name = self.new_name()
        copy.messages += [ChatMessage.model_validate(message) for message in messages(name, self.choice)]
        for key, value in header_change(name, self.choice).items():
            self.headers[session.id][key] = value
            if key in ("title", "pinned"):
                setattr(copy, key, value)
            else:
                copy.metadata[key] = value
        if self.choice.random() < 0.5:
            tokens = self.choice.randrange(1, 100)
            copy.usage.append(Usage(usage_id=name, total_tokens=tokens))
            self.usage[session.id].append((name, tokens))
        new = [m for m in copy.messages if m.sequence is None]
        call, saved = await self.call(
            "save", session, self.ledger.save_session(copy),
            messages=[m.model_dump(exclude_none=True) for m in new],
            header=self.headers[session.id], usage=self.usage[session.id],
        )  # fmt: skip
        if call.end is None:
            assert saved is copy
            self.recorder.end(call, "acknowledged", [[m.message_id, m.sequence, None] for m in new])
            self.headers[session.id], self.usage[session.id] = {}, []
        elif call.outcome == "refused" and call.error == GONE:
            del self.copies[session.id]

    async def read(self, session: Session) -> ChatSession | None:
        call, found = await self.call("read", session, self.ledger.get_session(session.id))
        if call.end is None:
            self.recorder.end(call, "acknowledged", seen(found))
        return found if isinstance(found, ChatSession) else None

    async def amend_metadata(self, session: Session) -> None:
        if not self.own[session.id]:
            return
        message_id, key = self.choice.choice(self.own[session.id]), self.new_name()
        work = self.ledger.amend_message(session.id, message_id, {"metadata": {key: 1}})
        call, receipt = await self.call("amend", session, work, message_id=message_id, keys=[key])
        if call.end is None:
            self.recorder.end(call, "acknowledged", {"version": receipt.version, "amended": receipt.amended})

    async def amend_content(self, session: Session) -> None:
        """Change a message as it was read, somebody else's too."""
        found = await self.read(session)
        if found is None or not found.messages:
            return
        message_id, content = self.choice.choice(found.messages[-6:]).message_id, f"amended by {self.new_name()}"
        await asyncio.sleep(self.choice.random() * 0.01)
        work = self.ledger.amend_message(session.id, message_id, {"content": content}, expected_version=found.version)
        sent = {"message_id": message_id, "content": content, "expected_version": found.version}
        call, receipt = await self.call("amend", session, work, **sent)
        if call.end is None:
            self.recorder.end(call, "acknowledged", {"version": receipt.version, "amended": receipt.amended})

    async def add_tool_call(self, session: Session) -> None:
        name = self.new_name()
        for _ in range(2):
            work = self.ledger.add_tool_call(session.id, tool_call(name), message_id=f"{name}-holder")
            sent = {"tool_call": tool_call(name), "message_id": f"{name}-holder"}
            call, receipt = await self.call("add_tool_call", session, work, **sent)
            if call.end is None:
                self.recorder.end(
                    call, "acknowledged", {"message_id": receipt.message_id, "sequence": receipt.sequence}
                )
                if self.choice.random() < 0.5:
                    return
                await self.append_until_known(session)  # else: delivered once more, in another turn perhaps

    async def record_usage(self, session: Session) -> None:
        name, tokens = self.new_name(), self.choice.randrange(1, 100)
        for _ in range(2):
            work = self.ledger.record_usage(session.id, Usage(total_tokens=tokens), usage_id=name)
            call, counted = await self.call("usage", session, work, usage=[(name, tokens)])
            if call.end is None:
                self.recorder.end(call, "acknowledged", seen_header(counted))
                if self.choice.random() < 0.8:
                    return  # else: delivered once more

    async def update(self, session: Session) -> None:
        wanted = header_change(self.new_name(), self.choice)
        metadata = {key: value for key, value in wanted.items() if key not in ("title", "pinned")}
        work = self.ledger.update_session(
            session.id, title=wanted.get("title"), pinned=wanted.get("pinned"), metadata=metadata
        )
        call, updated = await self.call("update", session, work, header=wanted)
        if call.end is None:
            self.recorder.end(call, "acknowledged", seen_header(updated))

    async def fork(self, session: Session) -> None:
        found = await self.read(session)
        if found is None or not found.next_sequence:
            return
        name = f"{session.id}-{self.new_name()}"
        at = self.choice.choice((None, self.choice.randrange(found.next_sequence)))
        for _ in range(2):
            work = self.ledger.fork_session(session.id, name, at_sequence=at)
            call, _ = await self.call("fork", session, work, fork=name, at=at)
            if call.end is None:
                self.recorder.end(call, "acknowledged")
                if self.choice.random() < 0.8:
                    return  # else: asked for once more

    async def pages(self, session: Session) -> None:
        """Walk through the pages of a session, from either end."""

        async def walk(limit: int, *, forward: bool) -> list[ChatMessage]:
            walked: list[ChatMessage] = []
            while True:
                after = walked[-1].sequence if forward and walked else -1 if forward else None
                before = walked[0].sequence if walked and not forward else None
                page = await self.ledger.get_messages(session.id, after=after, before=before, limit=limit)
                walked = walked + page if forward else page + walked
                if len(page) < limit:
                    return walked

        limit = self.choice.randrange(10, 50)
        call, walked = await self.call("pages", session, walk(limit, forward=self.choice.random() < 0.5), limit=limit)
        if call.end is None:
            self.recorder.end(call, "acknowledged", {"messages": seen_messages(walked)})

    async def lists(self, session: Session) -> None:
        """Walk through the pages of the list of a session's owner."""

        async def walk() -> list[SessionHeader]:
            walked, cursor = [], None
            while True:
                page = await self.ledger.list_sessions(session.user, limit=2, cursor=cursor)
                walked += page.sessions
                if (cursor := page.cursor) is None:
                    return walked

        call, walked = await self.call("list", Session("", session.user), walk(), user=session.user)
        if call.end is None:
            self.recorder.end(call, "acknowledged", [[s.session_id, *seen_header(s).values()] for s in walked])

    async def truncate(self, session: Session) -> None:
        found = await self.read(session)
        if found is None:
            return
        first = max(0, found.next_sequence - self.choice.randrange(1, 6))
        expected = found.next_sequence if self.choice.random() < 0.5 else None
        work = self.ledger.truncate_session(session.id, first, expected_sequence=expected)
        call, receipt = await self.call("truncate", session, work, from_sequence=first)
        if call.end is None:
            answer = {"next_sequence": receipt.next_sequence, "version": receipt.version}
            self.recorder.end(call, "acknowledged", answer)

    async def delete(self, session: Session) -> None:
        call, deleted = await self.call("delete", session, self.ledger.delete_session(session.id))
        if call.end is None:
            self.recorder.end(call, "acknowledged", {"deleted": deleted})


class ClientReader(ClientWriter):
    """Only reads."""

    async def run(self) -> None:
        while not self.finish.is_set():
            [look] = self.choice.choices((self.read, self.pages, self.lists), (8, 1, 1))
            await look(self.choice.choice(self.job.sessions))
            await asyncio.sleep(self.choice.random() * 0.02)
        for session in self.job.sessions:
            for look in (self.read, self.pages, self.lists):
                await look(session)


class DirectWriter(Writer):
    """Another service, in SQL and in transactions of its own: of all isolation levels, over one or two sessions.

    Half of the time it hands its connection to the Python client, which joins the transaction.
    """

    connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def one_thing(self, session: Session) -> None:
        if self.choice.random() < 0.6:
            await self.append_until_known(session)
            return
        both = self.choice.sample(self.job.sessions, min(2, len(self.job.sessions)))
        batches = [messages(self.new_name(), self.choice) for _ in both]
        for _ in range(3):
            calls = await self.transaction(list(zip(both, batches, strict=True)))
            if calls[0].outcome == "acknowledged" or calls[0].error == GONE:
                return

    async def append(self, session: Session, batch: list[Json]) -> Call:
        [call] = await self.transaction([(session, batch)])
        return call

    async def transaction(self, batches: list[tuple[Session, list[Json]]]) -> list[Call]:
        calls = [self.recorder.begin("append", session.id, messages=batch) for session, batch in batches]
        try:
            async with asyncio.timeout(LONGEST_CALL):
                answers = await self._committed(batches)
        except Exception as error:
            outcome, name = told(error)
            if outcome == "unknown" and self.connection is not None:
                self.connection.terminate()
            for call in calls:
                self.recorder.end(call, outcome, None, name)
        else:
            for call, answer in zip(calls, answers, strict=True):
                self.recorder.end(call, "acknowledged", answer)
        return calls

    async def _committed(self, batches: list[tuple[Session, list[Json]]]) -> list[list[list[Any]]]:
        if self.connection is None or self.connection.is_closed():
            self.connection = await asyncpg.connect(self.job.url)
        isolation = self.choice.choice(ISOLATIONS)
        disturbed = not self.finish.is_set()
        answers = []
        async with self.connection.transaction(isolation=isolation):
            if disturbed and self.choice.random() < 0.3:
                await self.connection.execute(f"set local {self.choice.choice(LIMITS)} = '3ms'")
            for session, batch in batches:
                if self.choice.random() < 0.5:
                    receipts = await ChatLedger(self.connection).append_messages(session.id, batch)
                    answers.append([[r.message_id, r.sequence, r.appended] for r in receipts])
                else:
                    rows = await self.connection.fetch(
                        "select * from chatledger.append_messages($1, $2::text[]::jsonb[])",
                        session.id,
                        [json.dumps(message) for message in batch],
                    )
                    answers.append([[row["message_id"], row["sequence"], row["appended"]] for row in rows])
                if disturbed and self.choice.random() < 0.3:
                    await asyncio.sleep(self.choice.random() * 0.01)  # busy with rows of its own
        return answers


async def work(job: Job, connection: socket.socket) -> None:
    """Do a job: write and read until a byte arrives, then show that all goes on."""
    finish = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_finish() -> None:
        connection.recv(1)  # whoever ends with something unread takes what it wrote with it
        loop.remove_reader(connection.fileno())
        finish.set()

    loop.add_reader(connection.fileno(), told_to_finish)

    def write(line: str) -> None:
        try:
            connection.sendall(line.encode() + b"\n")
        except OSError:
            os._exit(1)  # nobody listens any more

    def recorder(name: str) -> Recorder:
        return Recorder(name, write)

    names = [f"{job.name}-{number}" for number in range(job.tasks)]
    if job.kind == "direct":
        writers: list[Writer] = [DirectWriter(name, job, recorder(name), finish) for name in names]
        await _all(writer.run() for writer in writers)
        return

    settings = Settings(
        database_url=job.url, prepared_statements=job.prepared_statements, cache_min_messages=0, pool_size=5,
        retry_deadline=5,
    )  # fmt: skip
    async with ChatLedger(redis_url=job.redis_url, settings=settings) as cached, ChatLedger(settings=settings) as plain:
        writers = [ClientWriter(name, job, recorder(name), finish, cached) for name in names]
        for kind, ledger in (("cached", cached), ("plain", plain)):
            name = f"{job.name}-reads-{kind}"
            writers.append(ClientReader(name, job, recorder(name), finish, ledger))
        await _all(writer.run() for writer in writers)


async def _all(works: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for one in works:
            group.create_task(one)


def main() -> None:
    """Fork a process for each job, until no more come."""
    jobs = socket.socket(fileno=sys.stdin.fileno())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to reap them
    while True:
        text, handles, _, _ = socket.recv_fds(jobs, 1 << 20, 1)
        if not text:
            return
        if os.fork():
            os.close(handles[0])
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        told_job = json.loads(text)
        sessions = [Session(**session) for session in told_job.pop("sessions")]
        with socket.socket(fileno=handles[0]) as connection:
            logging.getLogger("chatledger.cache.link").setLevel(logging.ERROR)
            connection.sendall(f"{os.getpid()}\n".encode())
            asyncio.run(work(Job(sessions=sessions, **told_job), connection))
            connection.sendall(DONE)
        os._exit(0)


if __name__ == "__main__":
    main()
