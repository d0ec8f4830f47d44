"""No password and no words of anybody's end where others look: logs, errors, screens, command lines."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

import chatledger.following.listener
from chatledger import ChatLedger, ChatLedgerError, ChatMessage, ChatSession, InvalidArgument, Settings, Stream, Usage
from chatledger.demo import writers
from chatledger.demo.batches import make_writer
from chatledger.demo.progress import Progress
from chatledger.postgres.connections import connect, password_of
from tests.helpers.openai_server import chunk as chunk_of
from tests.helpers.program import run
from tests.helpers.sql import until_waiting

if TYPE_CHECKING:
    from tests.helpers.sql import Connect

PASSWORD = "open sesame"
UNREADABLE_URLS = [
    "postgresql://u:open sesame/2@localhost/d",
    "postgresql://u:open sesame@localhost:open sesame/d",
    "postgresql://u:open sesame@[::1/d",
    "http://u:open sesame@h/d",
    "postgresql://u@h/d?sslmode=odd&password=open sesame",
]
WORDS = "a confession"


def told(error: BaseException) -> str:
    """All that a log of this error would hold."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("url", UNREADABLE_URLS)
async def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a Postgres URL") as refused:
        async with ChatLedger(url) as ledger:
            await ledger.status()
    assert "sesame" not in told(refused.value)
    with pytest.raises(InvalidArgument) as refused:
        await connect(url)
    assert "sesame" not in told(refused.value)


@pytest.mark.parametrize("command", ["status", "migrate"])
async def test_the_program_does_not_quote_a_url_that_it_cannot_read(command: str) -> None:
    ended = await run(UNREADABLE_URLS[0], command)
    assert (ended.code, ended.output) == (3, "")
    assert ended.errors.startswith("error: database_url is not a Postgres URL")
    assert "sesame" not in ended.errors


@pytest.mark.parametrize("command", ["status", "up", "migrate"])
async def test_a_server_that_is_not_there_is_told_without_the_password(command: str) -> None:
    url = "postgresql://u:open sesame@localhost:1/d?password=open sesame"
    ended = await run(
        url, command, CHATLEDGER_RETRY_DEADLINE="0", CHATLEDGER_REDIS_URL="redis://:open sesame@localhost:1"
    )
    assert "sesame" not in ended.output + ended.errors
    assert "localhost" in ended.output if command == "up" else ended.code == 3


def test_settings_and_ledgers_do_not_show_their_urls() -> None:
    settings = Settings(database_url="postgresql://u:open sesame@h/d", redis_url="redis://:open sesame@h")
    assert settings.database_url is not None
    assert "sesame" in settings.database_url
    assert "sesame" not in f"{settings} {settings!r}"
    assert "sesame" not in repr(ChatLedger(settings=settings))


async def test_psql_gets_the_password_where_nobody_else_sees_it(tmp_path: Path) -> None:
    psql = tmp_path / "psql"
    psql.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/arguments; echo "$PGPASSWORD" > {tmp_path}/environment')
    psql.chmod(0o755)
    for url in ("postgresql://u:open%20sesame@h/d", "postgresql://u@h/d?password=open%20sesame"):
        progress = Progress(make_writer("psql-1", "psql", 1))
        with pytest.raises((writers.WriterFailed, BrokenPipeError)):
            await writers.write_with_psql(progress, psql, writers.Target(url, "s1", "u1"))
        assert "sesame" not in (tmp_path / "arguments").read_text()
        assert "postgresql://u@h/d" in (tmp_path / "arguments").read_text()
        assert (tmp_path / "environment").read_text() == f"{PASSWORD}\n"


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://u:a%2Fb@h/d", "a/b"),
        ("postgresql://u@h/d?x=1&password=a%2Bb", "a+b"),
        ("postgresql://u@h/d", None),
        ("postgresql:///d?host=/tmp", None),
    ],
)
def test_password_of(url: str, password: str | None) -> None:
    assert password_of(url) == password


# What people wrote


async def refusals(ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]) -> list[BaseException]:
    """Every refusal that there is, of calls on a session that holds words of somebody's."""
    mine = {"message_id": "m1", "role": "user", "content": WORDS, "metadata": {"note": WORDS}}
    session = ChatSession.new(session_id="s1", user_id="u1", title=WORDS, metadata={"note": WORDS})
    session.messages = [ChatMessage.model_validate(mine)]
    await ledger.save_session(session)
    await ledger.amend_message("s1", "m1", {"content": f"{WORDS}, amended"})
    await ledger.record_usage("s1", Usage(prompt_tokens=1), usage_id="use")
    await ledger.fork_session("s1", "s2")
    stale = session.model_copy(deep=True)
    stale.messages[0].content = f"{WORDS}, of another"

    calls: list[Awaitable[Any]] = [
        ledger.append_messages("s1", [mine | {"content": f"{WORDS}!"}]),
        ledger.append_messages("s1", [mine | {"message_id": "m2", "role": WORDS}]),
        ledger.append_messages("s1", [mine | {"message_id": "m2", "content": {"text": WORDS}}]),
        ledger.append_messages("s1", [mine | {"message_id": "m2", "tool_calls": [WORDS]}]),
        ledger.append_messages("s1", [mine | {"message_id": "m2", "metadata": {"note": {WORDS}}}]),
        ledger.append_messages("s1", [mine | {"message_id": "m2"}], expected_sequence=7),
        ledger.append_messages("s1", [mine | {"message_id": "m2"}], fence=7),
        ledger.append_messages("s1", [mine | {"message_id": "m2"}], user_id="u2"),
        ledger.amend_message("s1", "m1", {"content": "x"}, expected_version=1),
        ledger.amend_message("s1", "m1", {"content": 7}),
        ledger.amend_message("s1", "m1", {"role": WORDS}),
        ledger.amend_message("s1", "m9", {"content": WORDS}),
        ledger.add_tool_call("s1", {"id": WORDS, "function": WORDS}),
        ledger.create_session("s1", user_id="u2", title=WORDS),
        ledger.create_session("s3", metadata=[WORDS]),  # type: ignore[arg-type]
        ledger.update_session("s9", title=WORDS, metadata={"note": WORDS}),
        ledger.fork_session("s1", "s2", at_sequence=0, title=WORDS),
        ledger.record_usage("s1", Usage(prompt_tokens=2), usage_id="use"),
        ledger.truncate_session("s1", 0, expected_sequence=9),
        ledger.list_sessions("u1", title=WORDS, cursor="odd"),
        ledger.save_session(stale),
    ]
    found: list[BaseException] = []
    for call in calls:
        with pytest.raises(ChatLedgerError) as refused:
            await call
        found.append(refused.value)
    assert {getattr(error, "sqlstate", None) for error in found} >= {
        f"CL{number:03}" for number in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)
    }
    return found


async def test_no_error_and_no_log_holds_what_people_wrote(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for error in await refusals(ledger, connection):
        assert isinstance(error, ChatLedgerError)
        assert "confession" not in f"{error} {error.detail} {error.hint}", error
    assert "confession" not in caplog.text


def test_a_model_does_not_quote_what_it_refuses() -> None:
    message: Any = {"role": "user", "content": {"text": WORDS}}
    for make in (
        lambda: ChatMessage.model_validate(message),
        lambda: ChatSession.new().model_validate(ChatSession.new().model_dump() | {"messages": [message]}),
        lambda: ChatSession.new(title=message),
    ):
        with pytest.raises(ValidationError, match="valid string") as refused:
            make()
        assert "confession" not in told(refused.value)


ROWS = "alter table chatledger.{table} add constraint no_words check ({column} not like 'a confession%') not valid"


async def test_no_log_holds_what_is_streamed_saved_and_followed_when_postgres_quotes_the_row(
    ledger: ChatLedger,
    connection: asyncpg.Connection[asyncpg.Record],
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A constraint of somebody's own: its errors have the failing row in their DETAIL."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(chatledger.following.listener, "_PATIENCE", 0.0)
    chunk = ChatCompletionChunk.model_validate(chunk_of({"content": WORDS}))
    await ledger.create_session("s1")
    await ledger.create_session("s2", title=WORDS)
    copy = ChatSession.new()
    copy.messages.append(ChatMessage(role="user", content=WORDS))

    async def stream(session_id: str, then: Callable[[Stream], Awaitable[object]]) -> None:
        async with ledger.stream(session_id, holder=WORDS, ttl=1, flush_interval=0) as writing:
            if session_id == "s2":
                await connection.execute(ROWS.format(table="streams", column="holder"))
                await connection.execute(
                    "alter table chatledger.watches add constraint no_s2 check (session_id <> 's2') not valid"
                )
            await writing.feed(chunk)
            await then(writing)

    async def leave(_: Stream) -> None:
        raise LookupError

    async def cancel(writing: Stream) -> None:
        asyncio.get_running_loop().call_soon(writing._holder._task.cancel)  # type: ignore[union-attr]

    locking = connection.transaction()

    async def lock(_: Stream) -> None:
        await locking.start()
        await connection.execute("select from chatledger.sessions where id = 's1' for no key update")

    async def stay(_: Stream) -> None:
        while "was not renewed yet" not in caplog.text:
            await asyncio.sleep(0.01)

    await connection.execute(ROWS.format(table="messages", column="content"))
    with pytest.raises(asyncpg.CheckViolationError, match=r"Failing row contains .*confession"):
        await stream("s1", lambda writing: writing.flush())
    with pytest.raises(LookupError):
        await stream("s1", leave)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(stream("s1", cancel))
    leaving = asyncio.create_task(stream("s1", lock))
    await until_waiting(await connect())
    leaving.cancel()
    await asyncio.sleep(0)
    await locking.rollback()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    del leaving
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger.save_session(copy)
    async with asyncio.timeout(30):
        with pytest.raises(asyncpg.CheckViolationError):
            await stream("s2", stay)

    settings = Settings(listen_url="postgresql://u:open sesame@localhost:1/d?password=open sesame")
    async with asyncio.timeout(30), ChatLedger(ledger.database_url, settings=settings) as polling:
        with pytest.raises(asyncpg.CheckViolationError):
            await anext(polling.follow("s2"))
        async with aclosing(polling.follow("s1")) as events:
            waiting = asyncio.ensure_future(anext(events))
            while "No notifications arrive" not in caplog.text:
                await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
    gc.collect()  # tells of errors that nobody looked at

    for warning in (
        "is not saved yet",
        "end of the stream was not saved",
        "not renewed yet",
        "not released",
        "cancellation failed",
    ):
        assert warning in caplog.text
    assert "confession" not in caplog.text
    assert "sesame" not in caplog.text


async def test_the_servers_log_does_not_hold_what_people_wrote(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    """It has the statements that failed, whose arguments are not part of them."""
    folder = Path(await connection.fetchval("show data_directory")).parent
    before = (folder / "server.log").stat().st_size
    await refusals(ledger, connection)
    with (folder / "server.log").open("rb") as log:
        log.seek(before)
        written = log.read().decode(errors="replace")
    assert 'message_id "m1" is stored in this session with another body' in written
    assert "chatledger.append_messages($1, $2" in written
    assert "confession" not in written
