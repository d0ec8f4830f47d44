"""Appends to one session that come while another is under way go together, and none of them notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from chatledger import (
    AppendReceipt,
    ChatLedger,
    ChatLedgerError,
    DatabaseUnavailable,
    InvalidMessage,
    MessageIdConflict,
    SessionNotFound,
)
from tests.helpers.calls import real_call, replace_call
from tests.helpers.messages import user

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each call of the SQL function had."""
    real, sizes = real_call("append_messages"), []

    async def counted(connection: Any, session_id: str, messages: Sequence[str], *more: Any) -> list[AppendReceipt]:
        sizes.append(len(messages))
        receipts: list[AppendReceipt] = await real(connection, session_id, messages, *more)
        return receipts

    replace_call(monkeypatch, "append_messages", counted)
    return sizes


@asynccontextmanager
async def one_under_way(
    ledger: ChatLedger, connection: Connection, session_id: str
) -> AsyncIterator[asyncio.Task[Any]]:
    """Inside, an append to the session waits in the database; whoever comes now waits for it."""
    holding = connection.transaction()
    await holding.start()
    await connection.execute("select from chatledger.sessions where id = $1 for no key update", session_id)
    first = asyncio.create_task(ledger.append_messages(session_id, [user("first")]))
    await asyncio.sleep(0)  # it has begun
    yield first
    await holding.rollback()


async def started(*appends: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    async def run(append: Awaitable[Any]) -> Any:
        return await append

    tasks = [asyncio.create_task(run(append)) for append in appends]
    await asyncio.sleep(0)
    return tasks


async def texts(ledger: ChatLedger, session_id: str) -> list[Any]:
    return [message.content for message in await ledger.get_messages(session_id, limit=None)]


async def test_g1_g2_waiting_batches_go_in_one_call_whole_and_in_order(
    ledger: ChatLedger, connection: Connection, calls: list[int]
) -> None:
    session_id = (await ledger.create_session()).session_id
    async with one_under_way(ledger, connection, session_id) as first:
        waiting = await started(
            *(ledger.append_messages(session_id, [user(f"{n}a"), user(f"{n}b")]) for n in range(20))
        )
    receipts = await asyncio.gather(*waiting)

    assert calls == [1, 40]
    assert [r.sequence for r in await first] == [0]
    assert [[r.sequence for r in batch] for batch in receipts] == [[2 * n + 1, 2 * n + 2] for n in range(20)]
    assert await texts(ledger, session_id) == ["first", *(f"{n}{part}" for n in range(20) for part in "ab")]
    assert await ledger.verify_session(session_id) == []


async def test_a_lone_append_waits_for_nobody(ledger: ChatLedger, calls: list[int]) -> None:
    session_id = (await ledger.create_session()).session_id
    for n in range(3):
        await ledger.append_messages(session_id, [user(str(n))])
    assert calls == [1, 1, 1]


async def test_g10_only_what_is_bad_is_refused_by_its_own_index(
    ledger: ChatLedger, connection: Connection, calls: list[int]
) -> None:
    session_id = (await ledger.create_session()).session_id
    taken = user("taken")
    await ledger.append_messages(session_id, [taken])
    async with one_under_way(ledger, connection, session_id):
        good, bad, used, good_too = await started(
            ledger.append_messages(session_id, [user("good")]),
            ledger.append_messages(session_id, [user("fine"), {"role": "robot"}]),
            ledger.append_messages(session_id, [user("another", message_id=taken.message_id)]),
            ledger.append_messages(session_id, [user("good too")]),
        )

    with pytest.raises(InvalidMessage) as refused:
        await bad
    assert refused.value.detail["index"] == 1
    with pytest.raises(MessageIdConflict) as conflict:
        await used
    assert conflict.value.detail["index"] == 0
    assert [r.sequence for r in [*await good, *await good_too]] == [2, 3]
    assert await texts(ledger, session_id) == ["taken", "first", "good", "good too"]
    assert calls == [1, 1, 5, 1, 2, 1, 1]


async def test_g3_the_same_message_from_two_callers_is_stored_once(ledger: ChatLedger, connection: Connection) -> None:
    session_id, message = (await ledger.create_session()).session_id, user("once")
    async with one_under_way(ledger, connection, session_id):
        waiting = await started(*(ledger.append_messages(session_id, [message]) for _ in range(2)))
    assert [[(r.sequence, r.appended) for r in batch] for batch in await asyncio.gather(*waiting)] == [
        [(1, True)],
        [(1, False)],
    ]


async def test_g8_users_do_not_share_a_call(ledger: ChatLedger, connection: Connection) -> None:
    session_id = (await ledger.create_session(user_id="u1")).session_id
    async with one_under_way(ledger, connection, session_id):
        theirs, mine = await started(
            ledger.append_messages(session_id, [user("theirs")], user_id="u2"),
            ledger.append_messages(session_id, [user("mine")], user_id="u1"),
        )
    with pytest.raises(SessionNotFound):
        await theirs
    assert len(await mine) == 1


@pytest.mark.parametrize("cancelled", ["first", "waiting"])
async def test_a_cancelled_caller_does_not_hold_up_the_others(
    ledger: ChatLedger, connection: Connection, cancelled: str
) -> None:
    session_id = (await ledger.create_session()).session_id
    async with one_under_way(ledger, connection, session_id) as first:
        one, other = await started(*(ledger.append_messages(session_id, [user(text)]) for text in ("one", "other")))
        gone = first if cancelled == "first" else one
        gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(await other) == 1
    assert (await texts(ledger, session_id))[-1] == "other"


async def test_what_happens_to_the_call_happens_to_all(
    ledger: ChatLedger, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = (await ledger.create_session()).session_id

    async def unreachable(*_: Any) -> list[AppendReceipt]:
        raise DatabaseUnavailable("gone")

    async with one_under_way(ledger, connection, session_id) as first:
        waiting = await started(*(ledger.append_messages(session_id, [user(str(n))]) for n in range(3)))
        assert ledger._resources is not None
        monkeypatch.setattr(ledger._resources.combiner, "_run", unreachable)
    assert len(await first) == 1
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [
        DatabaseUnavailable
    ] * 3


async def test_those_who_wait_when_the_ledger_is_closed_are_refused(database_url: str, connection: Connection) -> None:
    """Closed, it stays closed: it opens no pool for them that nobody would close."""
    ledger = ChatLedger(database_url)
    session_id = (await ledger.create_session()).session_id
    async with one_under_way(ledger, connection, session_id) as first:
        [waiting] = await started(ledger.append_messages(session_id, [user("waiting")]))
        [closing] = await started(ledger.close())
    await closing
    assert len(await first) == 1
    for refused in (waiting, ledger.append_messages(session_id, [user("late")]), ledger.get_session(session_id)):
        with pytest.raises(ChatLedgerError, match="was closed"):
            await refused
    assert ledger._resources is None
    async with ledger:
        assert await texts(ledger, session_id) == ["first"]


async def test_long_queues_go_in_several_calls(ledger: ChatLedger, connection: Connection, calls: list[int]) -> None:
    session_id = (await ledger.create_session()).session_id
    batches = [[user("x") for _ in range(size)] for size in (600, 400, 1, 1500, 2)]
    async with one_under_way(ledger, connection, session_id):
        waiting = await started(*(ledger.append_messages(session_id, batch) for batch in batches))
    receipts = await asyncio.gather(*waiting)
    assert calls == [1, 1000, 1, 1500, 2]
    assert [batch[0].sequence for batch in receipts] == [1, 601, 1001, 1002, 2502]
