"""Following a session: what is in it, then what happens to it, as it is committed.

A follower asks Postgres what changed since it last read. Notifications only wake it: one that is lost, late or sent
twice changes latency, never what the follower yields. It pulls, so a slow one holds nobody up, and nothing grows
meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg

from chatledger.errors import ChatLedgerError, DatabaseUnavailable, SessionNotFound
from chatledger.following.events import SessionEvent, events_of, is_same_session
from chatledger.following.listener import FIRST_BACKOFF, LONGEST_BACKOFF, Listener
from chatledger.models.header import SessionHeader
from chatledger.postgres import functions
from chatledger.postgres.rows import header_of

if TYPE_CHECKING:
    from chatledger.postgres.rows import Changes

_PAGE = 100
_PAUSE_AFTER_NOTHING = 0.01
"""Seconds between a read that found nothing and the next: so forged notifications cost few reads."""
# A time limit, a shutdown, no room, a failover that came out on a standby: the same read may succeed later.
_TRANSIENT = (
    DatabaseUnavailable,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)


async def follow(
    open_listener: Callable[[], Awaitable[Listener]], session_id: str, after: int, user_id: str | None
) -> AsyncGenerator[SessionEvent, None]:
    """Yield what :meth:`ChatLedger.follow` says."""
    listener = await open_listener()
    follower = _Follower(listener, session_id, user_id)
    # Watch, LISTEN, watch again until that is sure, then read, in this order: see follow_session.sql.
    await follower.watch()
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
            elif header is None or not is_same_session(known, header):
                yield SessionEvent(kind="deleted", session=known)
                return
            assert changes is not None
            assert header is not None

            if header.version > known.version:
                follower.found_change()
            else:
                follower.found_nothing()
            for event in events_of(changes, known, header, position):
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


class _Follower:
    """How one who follows a session reads and waits."""

    def __init__(self, listener: Listener, session_id: str, user_id: str | None) -> None:
        self.session_id = session_id
        self.channel = ""
        self.wake = asyncio.Event()
        self.renew_at = 0.0
        self._user_id = user_id
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._backoff = FIRST_BACKOFF
        self._may_read_at = 0.0
        self._timed_out = False
        """The last wait ended without a notification, while notifications were trusted."""

    async def watch(self) -> None:
        """Request notifications."""
        self.channel, watched_for = await self._listener.watch(self.session_id, self._user_id)
        # When less than half is left, since only then it is extended; and not all followers at the same time.
        self.renew_at = self._loop.time() + watched_for.total_seconds() * random.uniform(0.5, 0.7)

    async def read(self, version: int | None, position: int) -> Changes | None:
        """Return what changed since; None when the session is gone.

        With a version, it goes on for as long as Postgres cannot answer; the first read, which has none, fails.
        """
        since = version, position
        while not self._listener.closed:
            self.wake.clear()
            try:
                if self._loop.time() >= self.renew_at:
                    await self.watch()
                return await self._listener.database.run(
                    functions.read_changes(self.session_id, self._user_id, since, _PAGE)
                )
            except SessionNotFound:
                return None
            except asyncpg.InterfaceError:
                if not self._listener.closed:  # or else the pool was closed under this call
                    raise
            except _TRANSIENT:
                if version is None:
                    raise
                await asyncio.sleep(self._backoff)
                self._back_off()
        raise ChatLedgerError("the ledger was closed", hint="End what follows before you close it")

    async def wait(self) -> None:
        """Wait for a notification; while notifications are not trusted, for a backoff that gets longer."""
        is_trusted = self._listener.delivers(self.channel) and self.renew_at > self._loop.time()
        self._timed_out = False
        try:
            async with asyncio.timeout_at(self.renew_at if is_trusted else self._loop.time() + self._backoff):
                await self.wake.wait()
        except TimeoutError:
            self._timed_out = is_trusted
            self._back_off()
        if (early := self._may_read_at - self._loop.time()) > 0:
            await asyncio.sleep(early)

    def found_change(self) -> None:
        """Take note that something had changed: more may come soon, and a notification should have come."""
        self._backoff = FIRST_BACKOFF
        if self._timed_out:
            self._listener.distrust()

    def found_nothing(self) -> None:
        """Take note that nothing had changed: the notification, if there was one, told of nothing."""
        self._may_read_at = self._loop.time() + _PAUSE_AFTER_NOTHING

    def _back_off(self) -> None:
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF)
