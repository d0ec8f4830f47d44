"""Following: every message once and in order, then what happens, whatever becomes of connections and notifications."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

import chatledger.following.follower
import chatledger.following.listener
from chatledger import (
    ChatLedger,
    ChatLedgerError,
    ChatMessage,
    DatabaseUnavailable,
    SessionEvent,
    SessionNotFound,
    Settings,
    Usage,
    embedded,
    migrate,
)
from chatledger.following.listener import Listener
from tests.helpers.calls import real_call, replace_call
from tests.helpers.following import LISTENING, Events, followers_of, gone, is_heard, listener_of, waiting_for_next
from tests.helpers.messages import user
from tests.helpers.sql import Connect, Psql
from tests.helpers.waiting import HANGS, until


def users(start: int, stop: int) -> list[ChatMessage]:
    return [user(str(number), message_id=str(number)) for number in range(start, stop)]


async def take(events: Events, count: int = 1) -> list[SessionEvent]:
    async with asyncio.timeout(HANGS):
        return [await anext(events) for _ in range(count)]


def told(events: list[SessionEvent]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.sequence) for event in events]


async def result(task: asyncio.Task[SessionEvent]) -> tuple[str, int | None]:
    async with asyncio.timeout(20):
        event = await task
    return event.kind, event.sequence


@pytest.fixture
async def session_id(ledger: ChatLedger) -> str:
    return (await ledger.create_session("s1", user_id="u1")).session_id


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[ChatLedger]:
    """Another process's ledger, as far as following is concerned: with connections of its own."""
    async with ChatLedger(database_url) as other:
        yield other


# What is yielded


async def test_g5_history_comes_in_order_and_then_what_is_appended(
    ledger: ChatLedger, other: ChatLedger, session_id: str
) -> None:
    await other.append_messages(session_id, users(0, 250))
    async with aclosing(ledger.follow(session_id)) as events:
        history = await take(events, 250)
        await other.append_messages(session_id, users(250, 253))
        live = await take(events, 3)

    assert [event.sequence for event in history + live] == [*range(253)]
    assert {event.kind for event in history + live} == {"appended"}
    [stored] = await ledger.get_messages(session_id, after=251)
    assert live[-1].message == stored
    assert (live[-1].session.next_sequence, live[-1].session.user_id) == (253, "u1")


@pytest.mark.parametrize("after", [-5, -1, 0, 98, 99, 100, 149])
async def test_following_goes_on_after_what_the_caller_has(ledger: ChatLedger, session_id: str, after: int) -> None:
    await ledger.append_messages(session_id, users(0, 150))
    async with aclosing(ledger.follow(session_id, after=after)) as events:
        missing = range(max(after, -1) + 1, 150)
        assert [event.sequence for event in await take(events, len(missing))] == [*missing]
        await ledger.append_messages(session_id, [user("new")])
        assert told(await take(events)) == [("appended", 150)]


async def test_what_happens_is_told(ledger: ChatLedger, other: ChatLedger, session_id: str) -> None:
    await other.append_messages(session_id, users(0, 4))
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events, 4)

        await other.amend_message(session_id, "1", {"content": "changed"})
        [amended] = await take(events)
        assert (amended.kind, amended.sequence) == ("amended", 1)
        assert amended.message is not None
        assert (amended.message.content, amended.message.message_id) == ("changed", "1")

        await other.update_session(session_id, title="Title", pinned=True)
        [header] = await take(events)
        assert (header.kind, header.sequence, header.message) == ("updated", None, None)
        assert (header.session.title, header.session.pinned) == ("Title", True)

        await other.record_usage(session_id, Usage(prompt_tokens=3, total_tokens=3))
        [header] = await take(events)
        assert (header.kind, header.session.total_usage.total_tokens) == ("updated", 3)

        await other.truncate_session(session_id, 2)
        [truncated] = await take(events)
        assert (truncated.kind, truncated.sequence, truncated.message) == ("truncated", 2, None)

        await other.append_messages(session_id, [user("instead")])
        assert told(await take(events)) == [("appended", 4)]

        await other.delete_session(session_id)
        [deleted] = await take(events)
        assert (deleted.kind, deleted.session.title) == ("deleted", "Title")
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_several_changes_at_once_are_told_in_an_order_that_makes_sense(
    ledger: ChatLedger, connect: Connect, session_id: str
) -> None:
    await ledger.append_messages(session_id, users(0, 5))
    connection = await connect()
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events, 5)
        async with connection.transaction():
            together = ChatLedger(connection)
            await together.append_messages(session_id, [user("seen by nobody")])
            await together.amend_message(session_id, "0", {"content": "changed"})
            await together.truncate_session(session_id, 3)
            await together.append_messages(session_id, [user("new")])
            await together.update_session(session_id, title="Title")
        assert told(await take(events, 4)) == [("truncated", 3), ("amended", 0), ("appended", 6), ("updated", None)]


async def test_message_amended_before_it_was_yielded_comes_once_as_it_is_now(
    ledger: ChatLedger, other: ChatLedger, session_id: str
) -> None:
    await other.append_messages(session_id, users(0, 150))
    async with aclosing(ledger.follow(session_id)) as events:
        first = await take(events)  # so that the first page is read
        for message_id in ("5", "120"):
            await other.amend_message(session_id, message_id, {"content": "changed"})
        rest = await take(events, 150)
        await other.append_messages(session_id, [user("end")])
        assert told(await take(events)) == [("appended", 150)]

    order = [*(("appended", number) for number in range(100)), ("amended", 5)]
    assert told(first + rest) == [*order, *(("appended", number) for number in range(100, 150))]
    changed = [event.sequence for event in rest if event.message and event.message.content == "changed"]
    assert changed == [5, 120]


async def test_messages_removed_before_they_were_yielded_are_not_told_of(
    ledger: ChatLedger, other: ChatLedger, session_id: str
) -> None:
    await other.append_messages(session_id, users(0, 150))
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events, 100)
        await other.truncate_session(session_id, 100)
        await other.append_messages(session_id, [user("end")])
        assert told(await take(events)) == [("appended", 150)]


async def test_a_long_history_is_read_page_by_page(
    ledger: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = real_call("read_changes"), []

    async def read_changes(*arguments: Any) -> Any:
        changes = await real(*arguments)
        sizes.append(len(changes.messages) if changes else 0)
        return changes

    replace_call(monkeypatch, "read_changes", read_changes)
    await ledger.append_messages(session_id, users(0, 1050))
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events)
        assert sizes == [100]
        await take(events, 1049)
    assert max(sizes) == 100


# Which session


@pytest.mark.parametrize(("session", "user_id"), [("unknown", None), ("s1", "u2"), ("s1", ""), ("gone", None)])
@pytest.mark.usefixtures("session_id")
async def test_g8_session_that_is_missing_or_not_theirs_is_not_found(
    ledger: ChatLedger, session: str, user_id: str | None
) -> None:
    await ledger.create_session("gone")
    await ledger.delete_session("gone")
    with pytest.raises(SessionNotFound):
        await anext(ledger.follow(session, user_id=user_id))


async def test_the_owner_follows(ledger: ChatLedger, session_id: str) -> None:
    await ledger.append_messages(session_id, [user()])
    async with aclosing(ledger.follow(session_id, user_id="u1")) as events:
        assert told(await take(events)) == [("appended", 0)]


async def test_session_created_anew_under_a_purged_id_is_another(
    ledger: ChatLedger, connect: Connect, session_id: str
) -> None:
    await ledger.append_messages(session_id, [user()])
    connection = await connect()
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events)
        async with connection.transaction():
            await connection.execute("delete from chatledger.sessions")
            again = ChatLedger(connection)
            await again.create_session(session_id)
            await again.append_messages(session_id, users(0, 5))
        listener_of(ledger)._wake_all()
        assert told(await take(events)) == [("deleted", None)]


async def test_deleted_while_the_history_is_read(ledger: ChatLedger, other: ChatLedger, session_id: str) -> None:
    await other.append_messages(session_id, users(0, 150))
    async with aclosing(ledger.follow(session_id)) as events:
        await take(events, 100)
        await other.delete_session(session_id)
        assert told(await take(events)) == [("deleted", None)]


# How it is told


async def test_writers_in_psql_wake_a_follower(ledger: ChatLedger, psql: Psql, session_id: str) -> None:
    async with aclosing(ledger.follow(session_id)) as events, waiting_for_next(ledger, events) as [waiting]:
        await psql("select from chatledger.append_messages('s1', array['{\"role\": \"user\"}']::jsonb[])")
        assert await result(waiting) == ("appended", 0)


async def test_message_of_a_transaction_that_was_open_before_anybody_followed(
    ledger: ChatLedger, connect: Connect, session_id: str
) -> None:
    """It saw no follower, so it notifies nobody: the follower must look by itself until it can be seen."""
    connection = await connect()
    transaction = connection.transaction()
    await transaction.start()
    await ChatLedger(connection).append_messages(session_id, [user("early")])
    async with aclosing(ledger.follow(session_id)) as events:
        waiting = asyncio.create_task(anext(events))
        await until(lambda: is_heard(ledger))
        await transaction.commit()
        assert await result(waiting) == ("appended", 0)


async def test_g5_what_was_committed_between_the_read_and_the_listen_is_not_missed(
    ledger: ChatLedger, other: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.create_session("s2")
    may_listen = asyncio.Event()
    listen, read = asyncpg.Connection.add_listener, real_call("read_changes")

    async def add_listener(*arguments: Any) -> None:
        await may_listen.wait()
        await listen(*arguments)

    async def read_changes(*arguments: Any) -> Any:
        changes = await read(*arguments)
        if session_id in arguments and not may_listen.is_set():
            await other.append_messages(session_id, [user("0")])
            may_listen.set()
            await until(lambda: len(listener_of(ledger)._listening) == 2)
        return changes

    async with (
        aclosing(ledger.follow("s2")) as heard,
        waiting_for_next(ledger, heard),
        aclosing(ledger.follow(session_id)) as events,
    ):
        monkeypatch.setattr(asyncpg.Connection, "add_listener", add_listener)
        replace_call(monkeypatch, "read_changes", read_changes)
        assert await result(asyncio.create_task(anext(events))) == ("appended", 0)


async def test_many_sessions_are_followed_over_one_connection(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    ids = [f"s{number}" for number in range(1000)]
    for session_id in ids:
        await ledger.create_session(session_id)
    followers = [ledger.follow(session_id) for session_id in ids for _ in range(2)]
    waiting = [asyncio.create_task(take(events)) for events in followers]
    await until(lambda: is_heard(ledger) and len(listener_of(ledger)._listening) == 1000)
    assert await connection.fetchval(f"select count(*) from pg_stat_activity where {LISTENING}") == 1

    for session_id in ids:
        await ledger.append_messages(session_id, [user(session_id)])
    yielded = [event for events in await asyncio.gather(*waiting) for event in events]
    assert [event.session.session_id for event in yielded] == [session_id for session_id in ids for _ in range(2)]

    for events in followers[2:]:
        await events.aclose()
    await until(lambda: len(listener_of(ledger)._listening) == 1)
    assert await connection.fetchval(f"select query ~* '^unlisten' from pg_stat_activity where {LISTENING}")
    for events in followers[:2]:
        await events.aclose()
    await until(lambda: gone(connection))


async def test_leaving_the_loop_ends_it(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    await ledger.append_messages(session_id, users(0, 3))
    async for event in ledger.follow(session_id):
        if event.sequence == 1:
            break
    await until(lambda: gone(connection))

    waiting = asyncio.create_task(take(ledger.follow(session_id, after=2)))
    await until(lambda: is_heard(ledger))
    waiting.cancel()
    await until(lambda: gone(connection))
    async with aclosing(ledger.follow(session_id, after=1)) as events:
        assert told(await take(events)) == [("appended", 2)]


async def test_a_slow_follower_holds_nobody_up(ledger: ChatLedger, other: ChatLedger, session_id: str) -> None:
    await other.append_messages(session_id, users(0, 3))
    async with aclosing(ledger.follow(session_id)) as slow, aclosing(ledger.follow(session_id)) as fast:
        assert told(await take(slow)) == [("appended", 0)]
        await take(fast, 3)
        for number in range(3, 250):
            await other.append_messages(session_id, [user(str(number))])
            assert told(await take(fast)) == [("appended", number)]
        assert [event.sequence for event in await take(slow, 249)] == [*range(1, 250)]


# What goes wrong


async def end_listening(ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """End the connection that LISTENs; return when there is another, on which notifications arrive."""
    ended = await connection.fetchval(f"select pid from pg_stat_activity where {LISTENING}")
    await connection.execute("select pg_terminate_backend($1)", ended)
    another = f"select exists (select from pg_stat_activity where {LISTENING} and pid <> $1)"
    await until(lambda: connection.fetchval(another, ended))
    await until(lambda: is_heard(ledger))


async def test_connection_that_listens_is_replaced(
    ledger: ChatLedger, other: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    await other.create_session("s2")
    async with aclosing(ledger.follow(session_id)) as one, aclosing(ledger.follow("s2")) as two:
        for number in range(3):
            async with waiting_for_next(ledger, one, two) as waiting:
                await end_listening(ledger, connection)
                for session in (session_id, "s2"):
                    await other.append_messages(session, [user(str(number))])
                assert [await result(task) for task in waiting] == [("appended", number)] * 2
    await until(lambda: gone(connection))


async def test_what_was_asked_for_is_asked_for_again_on_a_new_connection(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    """A server that crashed, or took over, may have lost the watch."""
    async with aclosing(ledger.follow(session_id)) as events:
        await ledger.create_session("s2")
        async with aclosing(ledger.follow("s2")) as more, waiting_for_next(ledger, events, more):
            await connection.execute("update chatledger.watches set watched_until = null")
            await end_listening(ledger, connection)
            watched = "select bool_and(watched_until is not null) from chatledger.watches"
            await until(lambda: connection.fetchval(watched))


async def test_all_connections_are_replaced(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    async with aclosing(ledger.follow(session_id)) as events:
        for number in range(5):
            waiting = asyncio.create_task(take(events))
            await connection.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await ledger.append_messages(session_id, [user(str(number))])
            assert told(await waiting) == [("appended", number)]


@pytest.mark.parametrize("error", [asyncpg.QueryCanceledError, asyncpg.ReadOnlySQLTransactionError])
async def test_what_may_pass_ends_only_the_first_look(
    ledger: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch, error: type[asyncpg.PostgresError]
) -> None:
    real, failures = real_call("read_changes"), [error(), error()]

    async def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await real(*arguments)

    async with aclosing(ledger.follow(session_id)) as events:
        await ledger.append_messages(session_id, [user("0")])
        await take(events)
        replace_call(monkeypatch, "read_changes", failing)
        await ledger.append_messages(session_id, [user("1")])
        assert told(await take(events)) == [("appended", 1)]
    assert not failures

    failures.append(error())
    with pytest.raises(error):
        await take(ledger.follow(session_id))


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[ChatLedger]:
    """Looks by itself after a tenth of a second, and asks for notifications anew."""
    async with ChatLedger(database_url, settings=Settings(follow_ttl=0.2)) as impatient:
        yield impatient


async def test_g5_lost_notifications_are_made_up_for(
    impatient: ChatLedger, other: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aclosing(impatient.follow(session_id)) as events:
        waiting = asyncio.create_task(take(events, 5))
        await until(lambda: is_heard(impatient))
        monkeypatch.setattr(Listener, "_wake", lambda *_: None)
        for number in range(5):
            await other.append_messages(session_id, [user(str(number))])
        assert told(await waiting) == [("appended", number) for number in range(5)]


async def test_notifications_are_not_counted_on_once_one_was_lost(
    impatient: ChatLedger,
    connection: asyncpg.Connection[asyncpg.Record],
    session_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distrusted: list[Listener] = []

    async with aclosing(impatient.follow(session_id)) as events, waiting_for_next(impatient, events) as [waiting]:
        monkeypatch.setattr(Listener, "distrust", lambda listener: distrusted.append(listener))
        await connection.execute("update chatledger.sessions set version = version + 1, title = 'Past our functions'")
        assert await result(waiting) == ("updated", None)
    assert distrusted == [listener_of(impatient)]


async def test_watch_is_renewed_for_as_long_as_somebody_follows(
    impatient: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    async with aclosing(impatient.follow(session_id)) as events, waiting_for_next(impatient, events):
        seen: set[Any] = set()
        async with asyncio.timeout(30):
            while len(seen) < 4:
                seen.add(await connection.fetchval("select watched_until from chatledger.watches"))
                await asyncio.sleep(0.01)


async def test_where_notifications_do_not_arrive_followers_poll_and_the_log_says_so_once(
    database_url: str,
    other: ChatLedger,
    session_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LISTEN on another database is like LISTEN through pgbouncer: it is accepted, and nothing comes."""
    monkeypatch.setattr(chatledger.following.listener, "_PATIENCE", 0.0)
    caplog.set_level(logging.INFO, "chatledger.following.listener")
    elsewhere = database_url.replace(f"/{database_url.split('/')[3].split('?')[0]}?", "/postgres?")
    async with ChatLedger(database_url, settings=Settings(listen_url=elsewhere)) as ledger:
        await other.create_session("s2")
        async with aclosing(ledger.follow(session_id)) as one, aclosing(ledger.follow("s2")) as two:
            for number in range(3):
                waiting = asyncio.create_task(take(one)), asyncio.create_task(take(two))
                for session in (session_id, "s2"):
                    await other.append_messages(session, [user(str(number))])
                assert [told(await task) for task in waiting] == [[("appended", number)]] * 2
            assert not is_heard(ledger)
    [record] = caplog.records
    assert (record.levelname, "No notifications arrive" in record.getMessage()) == ("WARNING", True)


async def test_where_nobody_can_listen_followers_poll_until_somebody_can(
    database_url: str,
    other: ChatLedger,
    session_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(chatledger.following.listener, "_PATIENCE", 0.0)
    caplog.set_level(logging.INFO, "chatledger.following.listener")
    refusing = True

    async def connect(*arguments: Any, **options: Any) -> Any:
        if refusing:
            raise OSError("no way")
        return await asyncpg.connect(*arguments, **options)

    monkeypatch.setattr("chatledger.following.listener.connect", connect)
    async with ChatLedger(database_url) as ledger, aclosing(ledger.follow(session_id)) as events:
        waiting = asyncio.create_task(take(events))
        await until(lambda: caplog.records)
        await other.append_messages(session_id, [user("0")])
        assert told(await waiting) == [("appended", 0)]
        refusing = False
        await until(lambda: is_heard(ledger))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "no way" in caplog.records[0].getMessage()


async def test_polling_backs_off_while_nothing_happens(
    ledger: ChatLedger, other: ChatLedger, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chatledger.following.follower, "LONGEST_BACKOFF", 0.4)
    monkeypatch.setattr(Listener, "delivers", lambda *_: False)
    async with aclosing(ledger.follow(session_id)) as events:
        for number in range(2):
            waiting = asyncio.create_task(take(events))
            await until(lambda: [follower._backoff for follower in followers_of(ledger)] == [0.4])
            await other.append_messages(session_id, [user(str(number))])
            assert told(await waiting) == [("appended", number)]
            assert followers_of(ledger)[0]._backoff == chatledger.following.listener.FIRST_BACKOFF


async def test_on_a_pool_of_the_callers_one_of_its_connections_listens(
    database_url: str, other: ChatLedger, session_id: str
) -> None:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2) as pool:
        ledger = ChatLedger(pool)
        async with aclosing(ledger.follow(session_id)) as events, waiting_for_next(ledger, events) as [waiting]:
            await other.append_messages(session_id, [user("0")])
            assert await result(waiting) == ("appended", 0)
        # It is the pool's again, though nobody closes the ledger.


async def test_a_pool_of_one_is_left_to_the_calls(database_url: str, other: ChatLedger, session_id: str) -> None:
    async with (
        asyncpg.create_pool(database_url, min_size=0, max_size=1) as pool,
        aclosing(ChatLedger(pool).follow(session_id)) as events,
    ):
        waiting = asyncio.create_task(take(events))
        await other.append_messages(session_id, [user("0")])
        assert told(await waiting) == [("appended", 0)]


async def test_a_connection_of_the_callers_cannot_be_followed_on(
    connection: asyncpg.Connection[asyncpg.Record], session_id: str
) -> None:
    with pytest.raises(ChatLedgerError, match="on a URL or a pool"):
        await anext(ChatLedger(connection).follow(session_id))


async def test_followers_end_when_their_ledger_is_closed(database_url: str, session_id: str) -> None:
    async with ChatLedger(database_url) as ledger:
        events = ledger.follow(session_id)
        waiting = asyncio.create_task(anext(events))
        await until(lambda: is_heard(ledger))
    with pytest.raises(ChatLedgerError, match="was closed"):
        await waiting


async def test_nothing_is_logged_of_a_ledger_that_is_closed(
    database_url: str, session_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chatledger.following.listener, "_PATIENCE", 0.5)
    connecting, patience_is_over = asyncio.Event(), asyncio.Event()

    async def connect(*_: Any, **__: Any) -> None:
        asyncio.get_running_loop().call_later(0.5, patience_is_over.set)  # behind the listener's timer
        connecting.set()
        await patience_is_over.wait()

    monkeypatch.setattr("chatledger.following.listener.connect", connect)
    async with ChatLedger(database_url) as ledger:
        waiting = asyncio.create_task(anext(ledger.follow(session_id)))
        await connecting.wait()
    with pytest.raises(ChatLedgerError, match="was closed"):
        await waiting
    await patience_is_over.wait()
    assert caplog.records == []


async def test_first_look_fails_like_any_other_call() -> None:
    settings = Settings(retry_deadline=0.05)
    async with ChatLedger("postgresql://nobody@/none?host=/nowhere", settings=settings) as ledger:
        with pytest.raises(DatabaseUnavailable):
            await anext(ledger.follow("s1"))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="chatledger-follow-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def test_following_goes_on_through_a_restart_of_the_server(data_dir: Path) -> None:
    servers = await asyncio.to_thread(embedded.start, data_dir)
    url = servers.database_url
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.close()
    async with ChatLedger(url, settings=Settings(retry_deadline=0.05)) as ledger:
        session_id = (await ledger.create_session()).session_id
        async with aclosing(ledger.follow(session_id)) as events:
            async with waiting_for_next(ledger, events) as [waiting]:
                await asyncio.to_thread(servers.close)
                with pytest.raises(DatabaseUnavailable):
                    await ledger.append_messages(session_id, [user("refused")])
                servers = await asyncio.to_thread(embedded.start, data_dir)
                assert servers.database_url == url
                await ledger.append_messages(session_id, [user("0")])
                assert await result(waiting) == ("appended", 0)
            async with waiting_for_next(ledger, events) as [waiting]:
                await ledger.append_messages(session_id, [user("1")])
                assert await result(waiting) == ("appended", 1)
    await asyncio.to_thread(servers.close)


PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
async def pgbouncer_url(database_url: str) -> AsyncIterator[str]:
    """The test's database through pgbouncer's transaction pooling."""
    server = conninfo_to_dict(database_url)
    folder = Path(tempfile.mkdtemp(prefix="chatledger-pgbouncer-"))
    folder.chmod(0o777)  # for the user that it runs as, when we are root
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{server['dbname']} = host={server['host']} user={server['user']}\n[pgbouncer]\n"
        f"listen_port = 6432\nunix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\n"
    )
    config.chmod(0o644)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(*as_nobody, str(PGBOUNCER), "-q", str(config))
    await until((folder / ".s.PGSQL.6432").exists)
    yield f"postgresql://{server['user']}@/{server['dbname']}?host={folder}&port=6432"
    process.terminate()
    await process.wait()
    shutil.rmtree(folder)


@pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer")
@pytest.mark.parametrize("listen_url", [None, "direct"])
async def test_behind_pgbouncer_followers_poll_unless_there_is_a_way_around_it(
    database_url: str, pgbouncer_url: str, other: ChatLedger, session_id: str, listen_url: str | None
) -> None:
    direct = database_url if listen_url else None
    settings = Settings(prepared_statements=False, listen_url=direct)
    async with (
        ChatLedger(pgbouncer_url, settings=settings) as ledger,
        aclosing(ledger.follow(session_id)) as events,
    ):
        for number in range(3):
            waiting = asyncio.create_task(take(events))
            if direct:
                await until(lambda: is_heard(ledger))
            await other.append_messages(session_id, [user(str(number))])
            assert told(await waiting) == [("appended", number)]
        assert is_heard(ledger) is bool(direct)
