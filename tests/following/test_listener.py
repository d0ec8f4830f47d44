"""Whether notifications are trusted: each state of the listener, and every way from one to another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import chatledger.following.listener
from chatledger import ChatLedger
from chatledger.following.listener import Listener
from tests.helpers.calls import real_call, replace_call
from tests.helpers.following import is_heard, waiting_for_next
from tests.helpers.messages import user
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


class Channel:
    """A connection that a test speaks for."""

    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}
        self.ended: list[Any] = []

    def add_termination_listener(self, ended: Any) -> None:
        self.ended.append(ended)

    def is_closed(self) -> bool:
        return False

    async def add_listener(self, channel: str, notified: Any) -> None:
        self.heard[channel] = notified

    async def remove_listener(self, channel: str, notified: Any) -> None:
        del self.heard[channel]

    def notify(self, channel: str) -> None:
        self.heard[channel](self, 1, channel, "1")


class Follower:
    session_id = "s1"
    renew_at = 1.0

    def __init__(self) -> None:
        self.wake = asyncio.Event()


class Rig:
    """A listener whose connections come when the test lets them."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Channel | Exception] = asyncio.Queue()
        self.requested = 0
        self.over = asyncio.Event()
        database: Any = self
        connect: Any = self.connect
        self.listener = Listener(connect, database, 60)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Channel]:
        connection = await self.connections.get()
        if isinstance(connection, Exception):
            raise connection
        yield connection

    async def run(self, call: Any) -> tuple[str, timedelta]:
        self.requested += 1
        return "c1", timedelta(seconds=60)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(chatledger.following.listener, "_PATIENCE", 0.0)
    monkeypatch.setattr(chatledger.following.listener, "FIRST_BACKOFF", 0.0)
    rig = Rig()
    yield rig
    await rig.listener.close()


async def test_every_state_and_every_way(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "chatledger.following.listener")
    listener, follower, connection = rig.listener, Follower(), Channel()

    def told() -> list[str]:
        return [record.levelname for record in caplog.records]

    def state() -> str:
        return listener.delivery.name

    listener.add("c1", follower)
    assert state() == "OFFLINE"
    rig.connections.put_nowait(connection)
    await until(lambda: rig.requested == 1)  # LISTENs, and has requested a test notification
    assert state() == "UNPROVEN"
    assert not listener.delivers("c1")
    await until(lambda: told() == ["WARNING"])

    follower.wake.clear()
    connection.notify("c1")
    assert state() == "DELIVERING"
    assert listener.delivers("c1")
    assert not listener.delivers("another")
    assert follower.wake.is_set()
    assert told() == ["WARNING", "INFO"]

    listener.distrust()  # a follower found a change that nobody notified it of
    assert state() == "UNPROVEN"
    await until(lambda: rig.requested == 2)
    connection.notify("c1")
    assert listener.delivers("c1")

    listener.distrust()
    monkeypatch.setattr(connection, "is_closed", lambda: True)
    for ended in connection.ended:
        ended(connection)
    await until(lambda: state() == "OFFLINE")
    assert follower.wake.is_set()
    assert follower.renew_at == 0.0  # the watch may be lost too
    rig.connections.put_nowait(OSError("no route"))
    await until(rig.connections.empty)
    again = Channel()
    rig.connections.put_nowait(again)
    await until(lambda: "c1" in again.heard)
    again.notify("c1")
    assert listener.delivers("c1")
    listener.remove("c1", follower)
    await until(lambda: listener._task is None)


async def test_a_follower_reads_no_faster_than_it_may_however_often_it_is_notified(
    ledger: ChatLedger, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may connect may send on a channel whose name they got hold of."""
    session_id = (await ledger.create_session()).session_id
    real, reads = real_call("read_changes"), []

    async def counted(*arguments: Any) -> Any:
        reads.append(asyncio.get_running_loop().time())
        return await real(*arguments)

    replace_call(monkeypatch, "read_changes", counted)
    async with aclosing(ledger.follow(session_id)) as events, waiting_for_next(ledger, events) as [waiting]:
        await until(lambda: is_heard(ledger))
        channel = await connection.fetchval("select channel from chatledger.watches where session_id = $1", session_id)
        began, before = asyncio.get_running_loop().time(), len(reads)
        for number in range(1000):
            await connection.execute("select pg_notify($1, $2)", channel, str(number))
        took = asyncio.get_running_loop().time() - began
        assert 1 <= len(reads) - before <= took / 0.01 + 2
        await ledger.append_messages(session_id, [user("still works")])
        assert (await waiting).kind == "appended"
