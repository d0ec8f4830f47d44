"""Calls that are tried again, and calls that must not be."""

from __future__ import annotations

import asyncio
import select
from typing import Any

import asyncpg
import pytest

from chatledger import ChatLedger, ChatMessage, ChatSession, DatabaseUnavailable, InvalidArgument, Settings, Usage
from tests.helpers.lost_answers import answers_lost
from tests.helpers.messages import user
from tests.helpers.sql import Connect


async def test_g3_an_append_whose_answer_got_lost_is_stored_once(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ledger.create_session()
    async with answers_lost(monkeypatch, "append_messages", times=2) as lost:
        receipts = await ledger.append_messages(session.session_id, [{"role": "user", "content": "once"}, user("two")])
    assert len(lost) == 2
    assert [(r.sequence, r.appended) for r in receipts] == [(0, False), (1, False)]
    assert len(await ledger.get_messages(session.session_id)) == 2


@pytest.mark.parametrize(
    "error", [asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.IdleSessionTimeoutError]
)
async def test_a_connection_that_the_server_ended_with_an_error_is_lost(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch, error: type[asyncpg.PostgresError]
) -> None:
    session = await ledger.create_session()
    async with answers_lost(monkeypatch, "append_messages", error=error) as lost:
        [receipt] = await ledger.append_messages(session.session_id, [user("once")])
    assert lost
    assert (receipt.sequence, receipt.appended) == (0, False)


async def test_creating_forking_adding_calls_and_usage_are_safe_to_repeat(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:

    async with answers_lost(monkeypatch, "create_session"):
        session = await ledger.create_session(user_id="u1")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    async with answers_lost(monkeypatch, "add_tool_call"):
        await ledger.add_tool_call(session.session_id, call)
    async with answers_lost(monkeypatch, "record_usage"):
        counted = await ledger.record_usage(session.session_id, Usage(prompt_tokens=3, total_tokens=3))
    async with answers_lost(monkeypatch, "fork_session"):
        await ledger.fork_session(session.session_id)
    assert counted.total_usage.total_tokens == 3
    [message] = await ledger.get_messages(session.session_id)
    assert message.tool_calls == [call]
    assert len((await ledger.list_sessions("u1")).sessions) == 2


async def test_an_amendment_whose_answer_got_lost_is_not_its_own_conflict(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ledger.create_session()
    message = user("one")
    await ledger.append_messages(session.session_id, [message])
    async with answers_lost(monkeypatch, "amend_message"):
        receipt = await ledger.amend_message(
            session.session_id, message.message_id, {"content": "two"}, expected_version=2
        )
    assert receipt.version == 3


async def test_g4_changes_that_could_undo_newer_ones_are_not_repeated(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ledger.create_session()
    message = user("one")
    await ledger.append_messages(session.session_id, [message])
    async with answers_lost(monkeypatch, "update_session"):
        with pytest.raises(DatabaseUnavailable, match="may have gone through"):
            await ledger.update_session(session.session_id, title="mine")
    async with answers_lost(monkeypatch, "amend_message"):
        with pytest.raises(DatabaseUnavailable, match="may have gone through"):
            await ledger.amend_message(session.session_id, message.message_id, {"content": "two"})


async def test_truncating_what_was_not_seen_is_not_repeated(
    ledger: ChatLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ledger.create_session()
    await ledger.append_messages(session.session_id, [user("one"), user("two")])
    async with answers_lost(monkeypatch, "truncate_session"):
        with pytest.raises(DatabaseUnavailable, match="may have gone through"):
            await ledger.truncate_session(session.session_id, 1)
    async with answers_lost(monkeypatch, "truncate_session") as lost:
        await ledger.truncate_session(session.session_id, 0, expected_sequence=2)
    assert lost


async def test_connections_that_the_server_ended_are_replaced(ledger: ChatLedger, connect: Connect) -> None:
    session = await ledger.create_session()
    killer = await connect()
    for n in range(3):
        await killer.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        [receipt] = await ledger.append_messages(session.session_id, [user(str(n))])
        assert receipt.sequence == n


async def test_a_ledger_closes_whose_connection_the_server_has_just_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncpg.Connection.close
    closed: list[asyncpg.Connection[asyncpg.Record]] = []

    async def close(connection: asyncpg.Connection[asyncpg.Record], *, timeout: float | None = None) -> None:
        closed.append(connection)
        ended = select.poll()
        ended.register(connection._transport.get_extra_info("socket"), select.POLLHUP)  # type: ignore[attr-defined]
        ended.poll()  # without the event loop, so that the client does not notice
        await real(connection, timeout=timeout)

    monkeypatch.setattr(asyncpg.Connection, "close", close)
    async with ChatLedger(f"{database_url}&idle_session_timeout=50") as ledger:
        await ledger.create_session()
    assert closed


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_collisions_under_stricter_isolation_are_retried(
    database_url: str, connect: Connect, isolation: str
) -> None:
    admin = await connect()
    name = await admin.fetchval("select current_database()")
    await admin.execute(f"alter database \"{name}\" set default_transaction_isolation = '{isolation}'")
    async with ChatLedger(database_url) as ledger:
        session = await ledger.create_session()
        receipts = await asyncio.gather(
            *(ledger.append_messages(session.session_id, [user(str(n))]) for n in range(16))
        )
    assert sorted(r.sequence for [r] in receipts) == list(range(16))


async def test_a_server_that_goes_while_a_connection_is_made_is_tried_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncpg.connect
    failed: list[str] = []

    async def connect(*arguments: Any, **named: Any) -> Any:
        if not failed:
            failed.append("once")
            raise asyncpg.InternalClientError("got result for unknown protocol state 0")
        return await real(*arguments, **named)

    monkeypatch.setattr(asyncpg, "connect", connect)
    async with ChatLedger(database_url) as ledger:
        await ledger.create_session()
    assert failed


async def test_a_server_that_stays_away_is_an_error_after_the_deadline() -> None:
    settings = Settings(retry_deadline=0.05)
    async with ChatLedger("postgresql://nobody@/none?host=/nowhere", settings=settings) as ledger:
        with pytest.raises(DatabaseUnavailable, match="did not answer"):
            await ledger.create_session()


async def test_a_cancelled_append_may_be_made_again(ledger: ChatLedger, connect: Connect) -> None:
    session = await ledger.create_session()
    holder, watcher = await connect(), await connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from chatledger.sessions where id = $1 for no key update", session.session_id)

    message = user("once")
    append = asyncio.create_task(ledger.append_messages(session.session_id, [message]))
    while not await watcher.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    ):
        await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    await transaction.rollback()

    await ledger.append_messages(session.session_id, [message])
    assert [m.content for m in await ledger.get_messages(session.session_id)] == ["once"]


async def test_g4_a_save_whose_answer_got_lost_does_not_stand_in_the_way_of_the_next(
    ledger: ChatLedger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ChatSession.new(title="none", metadata={"key": 0})
    session.messages += [user("none"), user("again none")]
    await ledger.save_session(session)

    async with ChatLedger(database_url, settings=Settings(retry_deadline=0)) as hasty:
        for text in ("one", "two"):
            change(session, text)
            async with answers_lost(monkeypatch, "save_session"):
                with pytest.raises(DatabaseUnavailable):
                    await hasty.save_session(session)
        change(session, "three")
        await hasty.save_session(session)
    assert [session.title, session.status, session.metadata["key"]] == ["three"] * 3
    assert session.total_usage.prompt_tokens == 3
    assert [message.content for message in session.messages] == ["three", "again none", "one", "two", "three"]
    loaded = await ledger.get_session(session.session_id)
    assert loaded is not None
    assert loaded.model_dump(exclude={"version", "messages"}) == session.model_dump(exclude={"version", "messages"})
    assert [message.content for message in loaded.messages] == [message.content for message in session.messages]


@pytest.mark.parametrize("stored", [True, False])
async def test_what_others_did_since_a_save_without_an_answer_stays(
    ledger: ChatLedger, database_url: str, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    session = ChatSession.new(title="none")
    session.messages.append(user("none"))
    await ledger.save_session(session)

    async with ChatLedger(database_url, settings=Settings(retry_deadline=0)) as hasty:
        session.title = session.metadata["key"] = session.messages[0].content = "one"
        session.messages.append(user("two"))
        async with answers_lost(monkeypatch, "save_session", before=not stored):
            with pytest.raises(DatabaseUnavailable):
                await hasty.save_session(session)
        await ledger.update_session(session.session_id, title="theirs", metadata={"key": "theirs"})
        session.title = session.metadata["key"] = "mine"
        await hasty.save_session(session)
    loaded = await ledger.get_session(session.session_id)
    assert loaded is not None
    for copy in (loaded, session):
        assert (copy.title, copy.metadata) == ("theirs", {"key": "theirs"})
        assert [message.content for message in copy.messages] == ["one", "two"]


@pytest.mark.parametrize("stored", [True, False])
async def test_a_message_of_a_save_in_doubt_cannot_be_taken_back(
    ledger: ChatLedger, database_url: str, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    session = await ledger.save_session(ChatSession.new())
    async with ChatLedger(database_url, settings=Settings(retry_deadline=0)) as hasty:
        session.messages.append(user("perhaps stored"))
        async with answers_lost(monkeypatch, "save_session", before=not stored):
            with pytest.raises(DatabaseUnavailable):
                await hasty.save_session(session)
        session.messages.clear()
        with pytest.raises(InvalidArgument, match=r"message 0: .* no longer in the list"):
            await hasty.save_session(session)
    assert [message.content for message in await ledger.get_messages(session.session_id)] == ["perhaps stored"]


async def test_a_save_that_postgres_refused_is_not_sent_again_on_its_own(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    """What comes next may be refused too, and then nothing of either is to be stored."""
    session = await ledger.save_session(ChatSession.new(title="none"))
    await connection.execute("set statement_timeout = 1")
    refusing = ChatLedger(connection)
    for title in ("one", "two"):
        session.title = title
        session.messages = [ChatMessage(role="user", content="x" * 20_000_000)]
        with pytest.raises(asyncpg.QueryCanceledError):
            await refusing.save_session(session)
    session.messages = []
    version = session.version
    await ledger.save_session(session)
    assert session.title == "two"
    assert session.version == version + 1


def change(session: ChatSession, text: str) -> None:
    """Change the same as before, and add something."""
    session.title = session.status = session.messages[0].content = text
    session.metadata["key"] = text
    session.usage.append(Usage(prompt_tokens=1))
    session.messages.append(user(text))
