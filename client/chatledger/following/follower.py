"""Following a session: what is in it, then what happens to it, as it is committed.

A follower asks Postgres what changed since it last looked. Notifications only wake it: one that is lost, late or sent
twice changes latency, never what the follower yields. It pulls, so one that is slow holds nobody up, and nothing grows
meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import asyncpg
from pydantic import BaseModel, ConfigDict

from chatledger.errors import ChatLedgerError, DatabaseUnavailable, SessionNotFound, without_detail
from chatledger.models.header import SessionHeader
from chatledger.models.message import ChatMessage
from chatledger.postgres import functions
from chatledger.postgres.connections import connect
from chatledger.postgres.rows import header_of, messages_of

if TYPE_CHECKING:
    from chatledger.postgres.connections import Database, Pool
    from chatledger.postgres.functions import Connection
    from chatledger.postgres.rows import Changes

logger = logging.getLogger(__name__)

_PAGE = 100
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_PATIENCE = 5.0  # seconds without a sign that notifications arrive, before the log says that there is none
# A time limit, a shutdown, no room, a failover that came out on a standby: the same look may succeed later.
_MAY_PASS = (
    DatabaseUnavailable,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)
_CHANGES_OF_OTHERS = {"message_count", "next_sequence", "version", "updated_at"}


class SessionEvent(BaseModel):
    """What happened to a session, by ``kind``.

    - ``appended``: ``message`` comes after all that were yielded before.
    - ``amended``: ``message``, which was yielded before, is another now.
    - ``truncated``: the messages from ``sequence`` on, as far as they were yielded before, were removed.
    - ``updated``: title, metadata, pin, status or usage changed.
    - ``deleted``: the session is gone. Nothing comes after this.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["appended", "amended", "truncated", "updated", "deleted"]
    sequence: int | None = None
    """The message's; of truncated, the first one that was removed."""
    message: ChatMessage | None = None
    session: SessionHeader
    """The session at that moment; of deleted, as it was last seen."""


class Listener:
    """Wakes the followers of all sessions, over one connection that LISTENs. It is open while anybody follows.

    Notifications may arrive or not: pgbouncer's transaction pooling accepts LISTEN and delivers nothing, Citus notifies
    on another node. So none is counted on before one has arrived: with a new connection, follow_session is asked for
    one, over the pool, as all calls go. Until it is there, and when there is no connection, followers poll.

    Args:
        connect: Gives the connection.
        database: Where calls run.
        ttl: For how long a session is watched at a time.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Connection]], database: Database, ttl: float
    ) -> None:
        self.database = database
        self._ttl = timedelta(seconds=ttl)
        self.closed = False
        self._connect = connect
        self._followers: dict[str, set[_Follower]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Of the present connection: what it LISTENs to, and whether a notification has arrived.
        self._listening: set[str] = set()
        self._heard = False
        self._silence: asyncio.TimerHandle | None = None
        self._told = False
        self._trouble: Exception | None = None

    def add(self, channel: str, follower: _Follower) -> None:
        """Wake a follower from now on, which has asked for notifications before: also when it must read again."""
        self._followers.setdefault(channel, set()).add(follower)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen())

    def remove(self, channel: str, follower: _Follower) -> None:
        """Wake a follower no longer. Does not wait for anything, so that following can end in any way."""
        self._followers[channel].discard(follower)
        if not self._followers[channel]:
            del self._followers[channel]
        self._changed.set()

    def hears(self, channel: str) -> bool:
        """Whether a notification on this channel will arrive, as far as one can know."""
        return self._heard and channel in self._listening

    def distrust(self) -> None:
        """Count on no notification until one arrives: a follower has found what none had told."""
        self._count_on_none()
        self._changed.set()

    async def ask(self, session_id: str, user_id: str | None, *, echo: bool = False) -> tuple[str, timedelta]:
        """Ask Postgres for a session's notifications; return the channel, and for how long they will be sent."""
        return await self.database.run(functions.follow_session(session_id, user_id, self._ttl, echo))

    async def close(self) -> None:
        """Close the connection. All followers end with an error."""
        self.closed = True
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._followers:
                self._count_on_none()
                try:
                    async with self._connect() as connection:
                        self._trouble, pause = None, _FIRST_PAUSE
                        await self._stay(connection)
                except Exception as error:
                    self._trouble = error  # of any kind: followers poll meanwhile
                self._listening.clear()
                # What they asked for may be lost as well, by a server that crashed or one that took over.
                self._wake_all(renew=True)
                if self._followers:
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
                    pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._stop_waiting_for_a_sign()
            self._task = None

    async def _stay(self, connection: Connection) -> None:
        """LISTEN for all who follow, until nobody does, or until the connection is not worth keeping."""
        connection.add_termination_listener(lambda _: self._changed.set())
        while self._followers and not connection.is_closed():
            self._changed.clear()
            for channel in self._followers.keys() - self._listening:
                await connection.add_listener(channel, self._notified)
                self._listening.add(channel)
                self._wake(channel)  # what was committed before this LISTEN was not told
            for channel in self._listening - self._followers.keys():
                self._listening.discard(channel)
                await connection.remove_listener(channel, self._notified)
            if not self._heard:
                await self._ask_for_a_sign()
            try:
                async with asyncio.timeout(self._ttl.total_seconds() / 2):
                    await self._changed.wait()
            except TimeoutError:
                if not self._heard:
                    return

    async def _ask_for_a_sign(self) -> None:
        for channel in self._listening & self._followers.keys():
            [follower, *_] = self._followers[channel]
            with suppress(SessionNotFound):
                await self.ask(follower.session_id, None, echo=True)
                return

    def _notified(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if not self._heard:
            self._heard = True
            self._stop_waiting_for_a_sign()
            if self._told:
                self._told = False
                logger.info("Notifications arrive: following no longer polls")
        self._wake(channel)

    def _count_on_none(self) -> None:
        self._heard = False
        if self._silence is None and not self.closed:
            self._silence = asyncio.get_running_loop().call_later(_PATIENCE, self._tell)

    def _stop_waiting_for_a_sign(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "No notifications arrive (%s): following polls. Behind pgbouncer, set listen_url to Postgres's own",
                without_detail(self._trouble) if self._trouble else "LISTEN was accepted",
            )

    def _wake(self, channel: str) -> None:
        for follower in self._followers.get(channel, ()):
            follower.wake.set()

    def _wake_all(self, *, renew: bool = False) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.wake.set()
                if renew:
                    follower.renew_at = 0.0


class _Follower:
    """How one who follows a session looks and waits."""

    def __init__(self, listener: Listener, session_id: str, user_id: str | None) -> None:
        self.session_id = session_id
        self.channel = ""
        self.wake = asyncio.Event()
        self.renew_at = 0.0
        self._user_id = user_id
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._pause = _FIRST_PAUSE
        self._by_the_clock = False
        """The last wait ended so, while notifications were counted on."""

    async def ask(self) -> None:
        """Ask for notifications."""
        self.channel, watched_for = await self._listener.ask(self.session_id, self._user_id)
        # When less than half is left, since only then it is extended; and not all followers at the same time.
        self.renew_at = self._loop.time() + watched_for.total_seconds() * random.uniform(0.5, 0.7)

    async def read(self, version: int | None, position: int) -> Changes | None:
        """Return what changed since; None when the session is gone.

        With a version, it goes on for as long as Postgres cannot answer; the first look, which has none, fails.
        """
        since = version, position
        while not self._listener.closed:
            self.wake.clear()
            try:
                if self._loop.time() >= self.renew_at:
                    await self.ask()
                return await self._listener.database.run(
                    functions.read_changes(self.session_id, self._user_id, since, _PAGE)
                )
            except SessionNotFound:
                return None
            except asyncpg.InterfaceError:
                if not self._listener.closed:  # or else the pool went away under this call
                    raise
            except _MAY_PASS:
                if version is None:
                    raise
                await asyncio.sleep(self._pause)
                self._pause_longer()
        raise ChatLedgerError("the ledger was closed", hint="End what follows before you close it")

    async def wait(self) -> None:
        """Wait for a notification; while none can be counted on, for a pause that gets longer."""
        counted_on = self._listener.hears(self.channel) and self.renew_at > self._loop.time()
        self._by_the_clock = False
        try:
            async with asyncio.timeout_at(self.renew_at if counted_on else self._loop.time() + self._pause):
                await self.wake.wait()
        except TimeoutError:
            self._by_the_clock = counted_on
            self._pause_longer()

    def found(self) -> None:
        """Take note that something had changed: more may come soon, and a notification should have told."""
        self._pause = _FIRST_PAUSE
        if self._by_the_clock:
            self._listener.distrust()

    def _pause_longer(self) -> None:
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


async def follow(
    open_listener: Callable[[], Awaitable[Listener]], session_id: str, after: int, user_id: str | None
) -> AsyncGenerator[SessionEvent, None]:
    """Yield what :meth:`ChatLedger.follow` says."""
    listener = await open_listener()
    follower = _Follower(listener, session_id, user_id)
    # Ask for notifications, LISTEN, then read, in this order: see notify_followers.sql.
    await follower.ask()
    channel = follower.channel
    listener.add(channel, follower)
    try:
        known: SessionHeader | None = None
        position = max(after, -1) + 1
        while True:
            changes = await follower.read(known.version if known else None, position)
            header = None if changes is None else header_of(changes.header)
            if known is None:
                if header is None:
                    raise SessionNotFound(f'session "{session_id}" not found', detail={"session_id": session_id})
                known = header
            elif header is None or not _same_session(known, header):
                yield SessionEvent(kind="deleted", session=known)
                return
            assert changes is not None
            assert header is not None

            if header.version > known.version:
                follower.found()
            for event in _events(changes, known, header, position):
                yield event
            new = [sequence for sequence in changes.messages if sequence >= position]
            known = header
            if len(new) >= _PAGE:
                position = new[-1] + 1
            else:
                position = max(position, header.next_sequence)
                await follower.wait()
    finally:
        listener.remove(channel, follower)


def _same_session(known: SessionHeader, header: SessionHeader) -> bool:
    """Whether it is not one that was created anew under a purged id, nor from an older backup."""
    return known.started_at == header.started_at and known.version <= header.version


def _events(changes: Changes, known: SessionHeader, header: SessionHeader, position: int) -> Iterator[SessionEvent]:
    """Tell what changed for somebody who has seen all messages in front of ``position``."""
    if changes.removed:
        # Whatever is removed goes with all that was behind it.
        yield SessionEvent(kind="truncated", sequence=min(changes.removed), session=header)
    for sequence, message in zip(changes.messages, messages_of(changes.messages.values()), strict=True):
        kind: Literal["amended", "appended"] = "amended" if sequence < position else "appended"
        yield SessionEvent(kind=kind, sequence=sequence, message=message, session=header)
    if known.model_dump(exclude=_CHANGES_OF_OTHERS) != header.model_dump(exclude=_CHANGES_OF_OTHERS):
        yield SessionEvent(kind="updated", session=header)


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
        # Also the pool's: that it LISTENs is nothing for others.
        with suppress(Exception):
            await connection.close(timeout=1)
