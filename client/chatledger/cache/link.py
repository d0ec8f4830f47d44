"""Copies of sessions in Redis or Valkey, so that a read fetches from Postgres only what changed since.

A copy never decides what is true. A reader takes it, asks Postgres what changed since its version, and answers from
both. So the cache may be behind, empty, slow, dead or full of garbage: only latency changes. Knows nothing of Postgres.

A session is one hash, ``chat:session:{session_id}``: ``format``, ``created`` (which session of that id this is),
``version``, ``header``, and its messages in numbered blocks; header and blocks behind a checksum.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from chatledger.errors import InvalidArgument

logger = logging.getLogger(__name__)

_FORMAT = b"2"
_CONNECTIONS = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# What a call may take beyond the timeout, since a session of megabytes takes its time on a sound network too.
_SLOWEST_SENDING = 10_000_000.0  # bytes a second
_LONGEST_ANSWER = 1.0  # seconds from its beginning to its end

# Applies a change to the copy it was made for, and only to that: atomic, without a round trip to look first. Versions
# are compared as text where they must be equal, since Lua's numbers end at 2^53. More than 8,000 values at a time are
# too many for unpack.
_WRITE = """
local key, ttl, format, created, version, base = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local first_pair = 7 + tonumber(ARGV[6])

local kind = redis.call('TYPE', key).ok
local held = kind == 'hash' and redis.call('HMGET', key, 'format', 'created', 'version')
if kind ~= 'none' and not (held and held[1] == format and held[2] and tonumber(held[3])) then
    redis.call('UNLINK', key)
    held = false
end

if base == '' then
    -- A whole copy. One with another created is of another session that had this id; which of the two is the later
    -- one is not ours to know, and the reader who finds the wrong one puts the right one.
    if held and held[2] == created and tonumber(held[3]) >= tonumber(version) then return 0 end
elseif not held or held[2] ~= created or held[3] ~= base then
    return 0
end
-- Without memory only a script's first write is refused, and only one that adds something.
redis.call('HSET', key, 'format', format)
if base == '' then redis.call('UNLINK', key) end
for i = 7, first_pair - 1, 1000 do
    redis.call('HDEL', key, unpack(ARGV, i, math.min(i + 999, first_pair - 1)))
end
for i = first_pair, #ARGV, 1000 do
    redis.call('HSET', key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
redis.call('PEXPIRE', key, ttl)
return 1
"""
_WRITE_SHA = hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class CachedSession:
    """A session as it was at ``header["version"]``."""

    header: dict[str, Any]
    blocks: dict[int, bytes]
    """Its messages, by number, in order. Not looked at: who cannot read them, or misses some, calls drop()."""


class SessionCache:
    """The copies in one Redis. Redis' troubles never raise: a read finds nothing, a write does nothing.

    When Redis does not answer, no call goes to it for a second. The first one after that has a task look in the
    background whether Redis is back, and goes on without it, as all do until it is; while it is not, the pause doubles
    up to 30 seconds. So only calls that were on their way to Redis when it stopped wait for it. What Redis refuses, a
    call tries again itself after such a pause, since a refusal comes at once.

    Belongs to one event loop. A cancelled or timed-out call takes its connection with it, so no later call can get its
    answer.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        cache_ttl: For how many seconds a copy is kept after it was last written. Reading does not renew it: that
            would make each read a write (to replicas and log files too) to save one full read a ``cache_ttl``.
        timeout: Seconds within which Redis must connect and begin to answer.
        clock: Tells the time for the pauses.

    Raises:
        InvalidArgument: The URL is none. The message does not quote it.
        ValueError: The ttl is none.
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
        # Not kept by the pool: what is in this list was left with no answer unread.
        self._idle: list[AbstractConnection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._looking: asyncio.Task[Any] | None = None
        self._closed = False
        options = self._pool.connection_kwargs
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self._calls = _Breaker(f"Redis at {place} does not answer", clock)
        # A Redis that is out of memory, say, is still good for reading.
        self._reads = _Breaker(f"Redis at {place} refuses reads", clock)
        self._writes = _Breaker(f"Redis at {place} refuses writes", clock)

    async def get(self, session_id: str) -> CachedSession | None:
        """Return the copy. None when there is none, on trouble, and for garbage, which is dropped."""
        attempt = self._reads.enter()
        if attempt is None:
            return None
        try:
            # PING's answer says that Redis is alive before the long one comes.
            answer = await self._call((b"PING",), (b"HGETALL", _key(session_id)))
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
            return _parse(answer, session_id)
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
            await self._call((b"UNLINK", _key(session_id)))

    async def close(self) -> None:
        """Close the connections. Calls do nothing from now on."""
        self._closed = True
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])
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
        created, version = _created(header), int(header["version"])
        pairs: list[bytes | int] = [b"format", _FORMAT, b"created", created, b"version", version]
        pairs += [b"header", _sealed(b"header", json.dumps(header, separators=(",", ":")).encode())]
        for number, block in blocks.items():
            pairs += (number, _sealed(b"%d" % number, block))
        key = _key(session_id)
        arguments = (1, key, self._ttl, _FORMAT, created, version, base, len(removed), *removed, *pairs)
        try:
            try:
                written = await self._call((b"EVALSHA", _WRITE_SHA, *arguments))
            except NoScriptError:
                written = await self._call((b"EVAL", _WRITE, *arguments))
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
            if attempt > 0:  # the pause is over
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._try(attempt, ((b"PING",),)))
                return None
            answer = await self._try(attempt, commands)
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def _try(self, attempt: float, commands: tuple[tuple[Any, ...], ...]) -> Any:
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
                # For as long as this comes late, the loop was busy with other things, and the answer may be waiting.
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


class _Breaker:
    """Holds back calls that would only fail; says once that they do, and once that it is over."""

    def __init__(self, trouble: str, clock: Callable[[], float]) -> None:
        self._trouble = trouble
        self._clock = clock
        self._pause = 0.0  # none: all is well
        self._next_try = 0.0

    def holds_back(self) -> bool:
        return self._pause > 0 and self._clock() < self._next_try

    def enter(self) -> float | None:
        """Return what to give to failed() or succeeded() when the call is made; None: it must not be made."""
        if self.holds_back():
            return None
        if self._pause:
            self._next_try = self._clock() + self._pause  # for the others, also if this one gets cancelled
        return self._pause

    def failed(self, attempt: float, error: Exception) -> None:
        if attempt != self._pause:
            return  # was on its way with one that failed before
        if not self._pause:
            logger.warning("%s (%s): going on without the session cache", self._trouble, _reason(error))
        self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
        self._next_try = self._clock() + self._pause

    def succeeded(self, attempt: float) -> None:
        if self._pause and attempt == self._pause:
            self._pause = 0.0
            logger.info("Over: %s", self._trouble)


def _reason(error: Exception) -> str:
    """What went wrong, without the server's words: they may quote the command, and so a message or the password."""
    cause = error.__cause__ or error.__context__
    system = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {system}" if system else type(error).__name__


def _key(session_id: str) -> bytes:
    return b"chat:session:" + session_id.encode("utf-8", "surrogatepass")  # no Unicode: for Postgres to refuse


def _sealed(field: bytes, value: bytes) -> bytes:
    """Return the value behind a checksum of it and its field: damaged JSON may be JSON still."""
    return b"%08x" % zlib.crc32(value, zlib.crc32(field)) + value


def _unsealed(field: bytes, sealed: bytes) -> bytes:
    value = sealed[8:]
    if int(sealed[:8], 16) != zlib.crc32(value, zlib.crc32(field)):
        raise ValueError("not as it was written")
    return value


def _created(header: Mapping[str, Any]) -> int:
    """When the session was created. As a number, since the text depends on the time zone of who read it."""
    since = datetime.fromisoformat(header["created_at"]) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def _parse(answer: Any, session_id: str) -> CachedSession:
    """Raise one of many errors unless the copy is whole."""
    if isinstance(answer, list):  # RESP2
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    if answer.pop(b"format") != _FORMAT:
        raise ValueError("another format")
    created, version = int(answer.pop(b"created")), int(answer.pop(b"version"))
    header = json.loads(_unsealed(b"header", answer.pop(b"header")))
    blocks = {int(field): _unsealed(field, answer[field]) for field in sorted(answer, key=int)}
    if (header["session_id"], header["version"], _created(header)) != (session_id, version, created):
        raise ValueError("another session's or version's header")
    return CachedSession(header, blocks)
