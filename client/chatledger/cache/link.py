"""The link to Redis or Valkey: copies of sessions, so that a read fetches from Postgres only what changed since.

A copy never decides what is true. A reader takes it, asks Postgres what changed since its version, and answers from
both. So the cache may be behind, empty, slow, dead or full of garbage: only latency changes. Knows nothing of Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from chatledger.cache.breaker import CircuitBreaker
from chatledger.cache.copies import WRITE, WRITE_SHA, CachedSession, key_of, parse, write_arguments
from chatledger.errors import InvalidArgument

logger = logging.getLogger(__name__)

_CONNECTIONS = 16
# What a call may take beyond the timeout, since a session of megabytes takes its time on a sound network too.
_SLOWEST_SENDING = 10_000_000.0  # bytes a second
_LONGEST_ANSWER = 1.0  # seconds from its beginning to its end


class SessionCache:
    """The copies in one Redis. Redis' troubles never raise: a read finds nothing, a write does nothing.

    When Redis does not answer, no call goes to it for a second. The first call after that starts a probe in the
    background, and goes on without Redis, as all do until a probe succeeds; after each failed probe the backoff
    doubles, up to 30 seconds. So only calls that were on their way to Redis when it stopped wait for it. After a
    refusal, a call itself is the probe, since refusals come at once.

    Belongs to one event loop. A cancelled or timed-out call takes its connection with it, so no later call can get its
    answer.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        cache_ttl: For how many seconds a copy is kept after it was last written. Reading does not renew it: that
            would make each read a write (to replicas and log files too) to save one full read a ``cache_ttl``.
        timeout: Seconds within which Redis must connect and begin to answer.
        clock: Tells the time for the backoffs.

    Raises:
        InvalidArgument: The URL is invalid. The message does not quote it.
        ValueError: The ttl is not above 0.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        cache_ttl: float,
        timeout: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if cache_ttl < 0.001:
            raise ValueError("cache_ttl must be above 0")
        try:
            # Our time limit is for all of a call. With RESP3 redis-py overlooks that the server closed a connection.
            self._pool = ConnectionPool.from_url(
                redis_url, socket_timeout=None, socket_connect_timeout=None, protocol=2
            )
            self._new_connection()  # so that an option that it does not know is refused here
        except (ValueError, TypeError):
            raise InvalidArgument(
                "redis_url is not a Redis URL, redis://:password@host:port/0 or unix:///path",
                detail={"argument": "redis_url"},
            ) from None  # the cause may quote a part of its password
        self._ttl = round(cache_ttl * 1000)
        self._timeout = timeout
        # Connections are driven by hand: redis-py's client has one time limit for each answer, so a dead Redis would
        # hold calls up for as long as a session of megabytes takes to arrive; and its blocking pool lets a crowd wait
        # for connections one after the other when Redis has stopped. This list has those with no answer unread.
        self._idle: list[AbstractConnection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._probe: asyncio.Task[Any] | None = None
        self._closed = False
        options = self._pool.connection_kwargs
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self._calls = CircuitBreaker(f"Redis at {place} does not answer", clock)
        # A Redis that is out of memory, say, is still good for reading.
        self._reads = CircuitBreaker(f"Redis at {place} refuses reads", clock)
        self._writes = CircuitBreaker(f"Redis at {place} refuses writes", clock)

    async def get(self, session_id: str) -> CachedSession | None:
        """Return the copy. None when there is none, on trouble, and for garbage, which is dropped."""
        attempt = self._reads.enter()
        if attempt is None:
            return None
        try:
            # PING's answer says that Redis is alive before the long one comes.
            answer = await self._call((b"PING",), (b"HGETALL", key_of(session_id)))
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                self._reads.failed(attempt, error)
                return None
            answer = "no hash"
        if answer is None:
            return None
        self._reads.succeeded(attempt)
        if not answer:
            return None
        try:
            return parse(answer, session_id)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.debug("Dropped a copy that cannot be read (%s)", type(error).__name__)
            await self.drop(session_id)
            return None

    async def put(self, session_id: str, header: Mapping[str, Any], blocks: Mapping[int, bytes]) -> None:
        """Store a whole copy, unless there is one of the same session (by ``created_at``) that is not older."""
        await self._write(session_id, b"", header, blocks, ())

    async def update(
        self,
        session_id: str,
        base_version: int,
        header: Mapping[str, Any],
        changed: Mapping[int, bytes],
        removed: Collection[int],
    ) -> None:
        """Bring the copy from ``base_version`` to the header's. Any other copy stays as it is."""
        await self._write(session_id, base_version, header, changed, removed)

    async def drop(self, session_id: str) -> None:
        """Remove the copy."""
        with contextlib.suppress(ResponseError):
            await self._call((b"UNLINK", key_of(session_id)))

    async def close(self) -> None:
        """Close the connections. Calls do nothing from now on."""
        self._closed = True
        if self._probe:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        # Ends at once, except perhaps with TLS.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._timeout):
                await self._disconnect_idle(nowait=False)
        await self._disconnect_idle()

    async def _write(
        self,
        session_id: str,
        base: int | bytes,
        header: Mapping[str, Any],
        blocks: Mapping[int, bytes],
        removed: Collection[int],
    ) -> None:
        attempt = None if self._calls.holds_back() else self._writes.enter()
        if attempt is None:
            return  # before the work of encoding
        arguments = write_arguments(session_id, self._ttl, base, header, blocks, removed)
        try:
            try:
                written = await self._call((b"EVALSHA", WRITE_SHA, *arguments))
            except NoScriptError:
                written = await self._call((b"EVAL", WRITE, *arguments))
        except ResponseError as error:
            self._writes.failed(attempt, error)
            # To a server that is now a replica, perhaps; a new connection may find the one that took over.
            await self._disconnect_idle()
            return
        if written:  # leaving the copy alone says nothing: that works without memory, too
            self._writes.succeeded(attempt)

    async def _call(self, *commands: tuple[Any, ...]) -> Any:
        """Return the answer to the last command; None on trouble. Raises ResponseError when Redis refuses it."""
        async with self._slots:  # waiting for our turn is before the time limit: it is no fault of Redis
            attempt = None if self._closed else self._calls.enter()
            if attempt is None:
                return None
            if self._calls.is_open:
                if self._probe is None or self._probe.done():
                    self._probe = asyncio.create_task(self._try(attempt, ((b"PING",),)))
                return None
            answer = await self._try(attempt, commands)
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def _try(self, attempt: int, commands: tuple[tuple[Any, ...], ...]) -> Any:
        """Return the answer to the last command, be it an error; None on trouble."""
        try:
            answer = await self._exchange(commands)
        except Exception as error:
            # Of any kind: what answers may be no Redis at all.
            self._calls.failed(attempt, error)
            await self._disconnect_idle()
            return None
        self._calls.succeeded(attempt)
        return answer

    def _new_connection(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def _exchange(self, commands: tuple[tuple[Any, ...], ...]) -> Any:
        connection = self._idle.pop() if self._idle else self._new_connection()
        answer: Any = None
        try:
            packed = connection.pack_commands(commands)
            loop = asyncio.get_running_loop()
            due = loop.time() + self._timeout + sum(map(len, packed)) / _SLOWEST_SENDING
            async with asyncio.timeout(None) as limit:
                # If this timer fires late, the loop was blocked; extend the deadline by that delay.
                timer = loop.call_at(due, lambda: limit.reschedule(2 * loop.time() - due))
                try:
                    await self._pool.ensure_connection(connection)
                    await connection.send_packed_command(packed)
                    for _ in commands:
                        try:
                            answer = await connection.read_response(disable_decoding=True)
                        except ResponseError as error:
                            answer = error
                        timer.cancel()
                        limit.reschedule(loop.time() + _LONGEST_ANSWER)
                finally:
                    timer.cancel()
        except BaseException:
            # An answer that is still to come would be taken for the answer to the next command.
            await connection.disconnect(nowait=True)
            raise
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return answer

    async def _disconnect_idle(self, *, nowait: bool = True) -> None:
        while self._idle:
            await self._idle.pop().disconnect(nowait=nowait)
