"""One connection that LISTENs for all followers of a ledger, and wakes them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from chatledger.errors import ChatLedgerError, SessionNotFound, without_detail
from chatledger.postgres import functions
from chatledger.postgres.connections import connect

if TYPE_CHECKING:
    from chatledger.postgres.connections import Database, Pool
    from chatledger.postgres.functions import Connection

logger = logging.getLogger(__name__)

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
"""Seconds between two polls, and between two attempts to connect: doubled each time, up to the longest."""
_PATIENCE = 5.0  # seconds without notifications before the log says so


class Delivery(Enum):
    """Whether notifications reach this process."""

    OFFLINE = "no connection LISTENs"
    UNPROVEN = "LISTEN was accepted, but no notification has arrived"
    DELIVERING = "a notification has arrived"


class Wakeable(Protocol):
    """A follower, as the listener knows it."""

    session_id: str
    wake: asyncio.Event
    renew_at: float


class Listener:
    """Wakes the followers of all sessions, over one connection that LISTENs. It is open while anybody follows.

    Notifications may arrive or not: pgbouncer's transaction pooling accepts LISTEN and delivers nothing. So they are
    trusted only after one has arrived: on each new connection the listener requests a test notification, over the pool
    that all calls go over. Until it comes, followers poll.

        OFFLINE --- connected ---> UNPROVEN --- a notification arrives ---> DELIVERING
           ^                        |     ^                                   |    |
           +--- connection ended ---+     +--- a follower missed a change ----+    |
           +----------------------------- connection ended ------------------------+

    Args:
        connect: Gives the connection.
        database: Where calls run.
        ttl: For how many seconds a session is watched at a time.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Connection]], database: Database, ttl: float
    ) -> None:
        self.database = database
        self.closed = False
        self.delivery = Delivery.OFFLINE
        self._ttl = timedelta(seconds=ttl)
        self._connect = connect
        self._followers: dict[str, set[Wakeable]] = {}
        self._listening: set[str] = set()  # the channels of the present connection
        self._changed = asyncio.Event()  # followers came or went, or the connection ended
        self._task: asyncio.Task[None] | None = None
        self._silence = _Silence()

    def add(self, channel: str, follower: Wakeable) -> None:
        """Wake a follower from now on. It has called :meth:`watch` before."""
        self._followers.setdefault(channel, set()).add(follower)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen())

    def remove(self, channel: str, follower: Wakeable) -> None:
        """Wake a follower no longer. Does not wait for anything, so that following can end in any way."""
        self._followers[channel].discard(follower)
        if not self._followers[channel]:
            del self._followers[channel]
        self._changed.set()

    def delivers(self, channel: str) -> bool:
        """Tell whether a notification on this channel will arrive, as far as one can know."""
        return self.delivery is Delivery.DELIVERING and channel in self._listening

    def distrust(self) -> None:
        """Poll until a notification arrives again: a follower just found a change that nobody notified it of."""
        if self.delivery is Delivery.DELIVERING:
            self._enter(Delivery.UNPROVEN)
        self._changed.set()

    async def watch(self, session_id: str, user_id: str | None, *, echo: bool = False) -> tuple[str, timedelta]:
        """Request a session's notifications; return the channel, and for how long they will surely be sent."""
        return await self.database.run(functions.follow_session(session_id, user_id, self._ttl, echo))

    async def close(self) -> None:
        """Close the connection. All followers end with an error."""
        self.closed = True
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _enter(self, delivery: Delivery, problem: Exception | None = None) -> None:
        self.delivery = delivery
        if delivery is Delivery.DELIVERING:
            self._silence.end()
        elif not self.closed:
            self._silence.begin(problem)

    async def _listen(self) -> None:
        backoff = FIRST_BACKOFF
        self._enter(Delivery.OFFLINE)
        try:
            while self._followers:
                problem = None
                try:
                    async with self._connect() as connection:
                        backoff = FIRST_BACKOFF
                        self._enter(Delivery.UNPROVEN)
                        await self._stay(connection)
                except Exception as error:
                    problem = error  # of any kind: followers poll meanwhile
                self._listening.clear()
                self._enter(Delivery.OFFLINE, problem)
                # The watches may be lost as well, by a server that crashed or one that took over.
                self._wake_all(renew=True)
                if self._followers:
                    await asyncio.sleep(backoff * random.uniform(0.5, 1))
                    backoff = min(backoff * 2, LONGEST_BACKOFF)
        finally:
            self._silence.cancel()
            self._task = None

    async def _stay(self, connection: Connection) -> None:
        """LISTEN for all who follow, until nobody does, or until the connection is not worth keeping."""
        connection.add_termination_listener(lambda _: self._changed.set())
        while self._followers and not connection.is_closed():
            self._changed.clear()
            for channel in self._followers.keys() - self._listening:
                await connection.add_listener(channel, self._notified)
                self._listening.add(channel)
                self._wake(channel)  # nobody was notified of what was committed before this LISTEN
            for channel in self._listening - self._followers.keys():
                self._listening.discard(channel)
                await connection.remove_listener(channel, self._notified)
            if self.delivery is Delivery.UNPROVEN:
                await self._request_test_notification()
            try:
                async with asyncio.timeout(self._ttl.total_seconds() / 2):
                    await self._changed.wait()
            except TimeoutError:
                if self.delivery is Delivery.UNPROVEN:
                    return

    async def _request_test_notification(self) -> None:
        for channel in self._listening & self._followers.keys():
            [follower, *_] = self._followers[channel]
            with suppress(SessionNotFound):
                await self.watch(follower.session_id, None, echo=True)
                return

    def _notified(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if self.delivery is Delivery.UNPROVEN:
            self._enter(Delivery.DELIVERING)
        self._wake(channel)

    def _wake(self, channel: str) -> None:
        for follower in self._followers.get(channel, ()):
            follower.wake.set()

    def _wake_all(self, *, renew: bool = False) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.wake.set()
                if renew:
                    follower.renew_at = 0.0


class _Silence:
    """A time without notifications: the log says once that it lasts, and once that it is over."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._warned = False
        self._problem: Exception | None = None

    def begin(self, problem: Exception | None) -> None:
        self._problem = problem
        if self._timer is None and not self._warned:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._warn)

    def _warn(self) -> None:
        self._timer, self._warned = None, True
        logger.warning(
            "No notifications arrive (%s): following polls. Behind pgbouncer, set listen_url to Postgres's own",
            without_detail(self._problem) if self._problem else "LISTEN was accepted",
        )

    def end(self) -> None:
        self.cancel()
        if self._warned:
            self._warned = False
            logger.info("Notifications arrive: following no longer polls")

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@asynccontextmanager
async def listening_connection(source: str | Pool) -> AsyncIterator[Connection]:
    """Give a connection to LISTEN on: one of its own to a URL, or one of the caller's pool."""
    if isinstance(source, str):
        connection: Connection = await connect(source, statement_cache_size=0)
    elif source.get_max_size() > 1:
        connection = await source.acquire()
    else:
        raise ChatLedgerError("the pool's only connection is for calls", hint="Set listen_url, or take a larger pool")
    try:
        yield connection
    finally:
        # Also the pool's: what it LISTENs to is nobody else's business.
        with suppress(Exception):
            await connection.close(timeout=1)
