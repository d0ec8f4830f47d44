"""The lease of a session's one stream: taken, kept by a heartbeat, released."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from chatledger.errors import ChatLedgerError, DatabaseUnavailable, StaleFence, StreamBusy
from chatledger.models.ids import new_id
from chatledger.postgres import functions

if TYPE_CHECKING:
    from chatledger.postgres.connections import Run
    from chatledger.postgres.functions import Lease

logger = logging.getLogger(__name__)

CLOSING_TIME = 5.0
"""Seconds that a stream which was cancelled takes to save the rest, and again to release the lease."""
_RENEWAL_TIMEOUT = 5.0
"""Seconds after which a renewal without an answer makes room for those of other streams, and is tried again."""
TRANSIENT = (DatabaseUnavailable, asyncpg.PostgresError, TimeoutError)
"""Errors after which the same call may succeed."""


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """What :meth:`ChatLedger.stream` was asked for; times in seconds."""

    session_id: str
    user_id: str | None
    holder: str
    ttl: float
    wait: float
    force: bool
    max_streams: int | None


class HeldLease:
    """The lease as its holder has it."""

    def __init__(self, run: Run, run_heartbeat: Run, options: LeaseOptions) -> None:
        self._run = run
        self._run_heartbeat = run_heartbeat
        self._options = options
        self._ttl = timedelta(seconds=options.ttl)
        self._fence = 0
        self._runs_out_at = 0.0

    async def begin(self) -> Lease:
        """Take the lease, waiting for it as long as the options say.

        Raises: see :meth:`ChatLedger.stream`.
        """
        loop = asyncio.get_running_loop()
        options = self._options
        begin = functions.begin_stream(
            options.session_id,
            options.holder,
            self._ttl,
            options.user_id,
            new_id(),
            options.force,
            options.max_streams,
        )
        deadline = loop.time() + options.wait
        backoff = 0.02
        while True:
            self._runs_out_at = loop.time() + options.ttl
            call = asyncio.ensure_future(self._run(begin))
            try:
                lease = await asyncio.shield(call)
            except asyncio.CancelledError:
                await finish_despite_cancellation(self.release(call))
                raise
            except StreamBusy:
                left = deadline - loop.time()
                if left <= 0:
                    raise
            else:
                self._fence = lease.fence
                return lease
            await asyncio.sleep(min(backoff * random.uniform(0.5, 1), left))
            backoff = min(backoff * 2, 0.25)

    async def keep(self) -> None:
        """Renew the lease until this is cancelled.

        Raises:
            StaleFence: It ran out, or was taken over.
            SessionNotFound: The session was deleted.
        """
        ttl = self._options.ttl
        try:
            async with asyncio.timeout_at(self._runs_out_at) as lease:
                renewed = True
                while True:
                    await asyncio.sleep(ttl / 3 if renewed else min(ttl / 20, 1.0))
                    renewed = await self._renew()
                    lease.reschedule(self._runs_out_at)
        except TimeoutError:
            raise StaleFence(
                "the stream's lease ran out: it could not be renewed in time",
                detail={"session_id": self._options.session_id, "fence": self._fence},
                hint="Stop this writer; begin a new stream to go on",
            ) from None

    async def _renew(self) -> bool:
        session_id = self._options.session_id
        runs_out_at = asyncio.get_running_loop().time() + self._options.ttl  # from before the call: never too late
        try:
            async with asyncio.timeout(min(self._options.ttl / 3, _RENEWAL_TIMEOUT)):
                await self._run_heartbeat(functions.renew_stream(session_id, self._fence, self._ttl))
        except TRANSIENT as error:
            logger.warning("session %s: the stream's lease was not renewed yet: %r", session_id, error)
            return False
        self._runs_out_at = runs_out_at
        return True

    async def release(self, begin: Awaitable[Lease] | None = None) -> None:
        """End the lease; with ``begin``, the one that this call may get. If that fails, it runs out by itself."""
        session_id = self._options.session_id
        try:
            async with asyncio.timeout(CLOSING_TIME):
                fence = self._fence if begin is None else (await begin).fence
                await self._run(functions.end_stream(session_id, fence))
        except TRANSIENT as error:
            logger.warning("session %s: the stream's lease was not released: %r", session_id, error)
        except ChatLedgerError:
            pass  # refused: there is no lease


async def finish_despite_cancellation(work: Coroutine[Any, Any, None]) -> None:
    """Do a piece of work to its end also when the caller is cancelled meanwhile, for a bounded time."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=2 * CLOSING_TIME)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("what was to be done after a cancellation failed: %r", error)  # asyncio would log its DETAIL
        raise
    finally:
        task.cancel()
