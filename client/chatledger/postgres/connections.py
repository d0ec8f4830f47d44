"""Where calls run: on a pool of our own, on the caller's pool, or on the caller's connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import asyncpg

from chatledger.errors import (
    CONNECTION_LOST,
    ChatLedgerError,
    DatabaseUnavailable,
    InvalidArgument,
    MigrationError,
    from_postgres,
    without_detail,
)

if TYPE_CHECKING:
    from chatledger.config import Settings
    from chatledger.postgres.functions import Connection, Result

    Pool = asyncpg.Pool[asyncpg.Record]


class Run(Protocol):
    """Runs a call on a connection."""

    async def __call__(self, call: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Return what the call returns."""


class _ConnectionLost(Exception):
    """The outcome is unknown: the call may have been committed."""


# The server says that nothing of the call was kept.
_NOT_DONE = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
)

_CANCELLING = 1.0
"""Seconds that Postgres has to cancel a call that was cancelled here."""
_CLOSING = 10.0
"""Seconds that calls under way and the server have when a pool is closed."""


class Database:
    """Runs calls on connections, and again when that is safe and may help."""

    def __init__(self, source: Pool | Connection, settings: Settings) -> None:
        self._source = source
        self._settings = settings
        self._loop = asyncio.get_running_loop()

    async def run(self, call: Callable[[Connection], Awaitable[Result]], *, repeatable: bool = True) -> Result:
        """Run one call, and again after a failure that may pass, until the retry deadline.

        Args:
            call: Does the call on a connection.
            repeatable: Doing it twice is the same as once. If not, it is only repeated when nothing of it was kept.

        Raises:
            ChatLedgerError: What the database refused; or DatabaseUnavailable after the deadline.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ChatLedgerError(
                "this ChatLedger was opened in another event loop", hint="Open one in each event loop that uses it"
            )
        if not isinstance(self._source, asyncpg.Pool):
            # The caller's own connection: a retry would be inside a transaction that has failed.
            return await _translated(call, self._source)

        deadline = self._loop.time() + self._settings.retry_deadline
        pause = 0.01
        while True:
            try:
                return await _attempt(call, self._source)
            except (_ConnectionLost, *_NOT_DONE, *CONNECTION_LOST, asyncpg.InternalClientError) as error:
                # asyncpg's internal error, here: the server went while a connection was taken or given back.
                may_be_done = isinstance(error, _ConnectionLost | asyncpg.InternalClientError)
                if (may_be_done and not repeatable) or self._loop.time() + pause > deadline:
                    raise DatabaseUnavailable(
                        f"the database did not answer: {without_detail(error) or 'no connection in time'}",
                        hint="The call may have gone through: look before you make it again"
                        if may_be_done and not repeatable
                        else "Check that Postgres runs and has free connections. Calling again is safe",
                    ) from error
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, 1.0)


async def _attempt(call: Callable[[Connection], Awaitable[Result]], pool: Pool) -> Result:
    connection = await pool.acquire()
    try:
        return await _translated(call, connection)
    except CONNECTION_LOST as error:
        raise _ConnectionLost(without_detail(error)) from error
    except asyncpg.InternalClientError as error:
        # What asyncpg says when the server ended the connection just as the call began.
        connection.terminate()
        raise _ConnectionLost(without_detail(error)) from error
    except asyncpg.InterfaceError as error:
        if connection.is_closed():
            raise _ConnectionLost(without_detail(error)) from error
        raise
    finally:
        # After a cancelled call asyncpg waits here until Postgres has cancelled it too: for ever, when that hangs.
        # After a TimeoutError it has dropped the connection.
        with contextlib.suppress(TimeoutError):
            await pool.release(connection, timeout=_CANCELLING)


async def _translated(call: Callable[[Connection], Awaitable[Result]], connection: Connection) -> Result:
    try:
        return await call(connection)
    except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as error:
        raise MigrationError(
            "the database has no chatledger of this release", hint="Run `chatledger migrate` on it"
        ) from error
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise InvalidArgument(without_detail(error)) from error
    except asyncpg.PostgresError as error:
        ours = from_postgres(error)
        if ours is None:
            raise
        raise ours from error


async def connect(database_url: str, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection.

    Raises:
        InvalidArgument: The URL cannot be read. Does not say why: what was taken for the port may be of the password.
    """
    try:
        return await asyncpg.connect(database_url, **options)
    except ValueError:
        raise InvalidArgument(
            "database_url is not a Postgres URL, postgresql://user:password@host:port/database",
            detail={"argument": "database_url"},
            hint="Special characters of a password are percent-encoded: / is %2F",
        ) from None


def without_password(database_url: str) -> str:
    """Return the URL without its password, for screens, logs and command lines."""
    url = re.sub(r"://([^:@/]*):[^@/]*@", r"://\1@", database_url)
    return re.sub(r"(?<=[?&])(ssl)?password=[^&]*&?", "", url)


def password_of(database_url: str) -> str | None:
    """Return the password in a URL, if there is one."""
    found = re.search(r"[?&]password=([^&]*)", database_url) or re.search(r"://[^:@/]*:([^@/]*)@", database_url)
    return unquote(found[1]) if found else None


async def open_pool(database_url: str, settings: Settings, size: int | None = None) -> Pool:
    """Open a pool that runs no reset query on release: our calls leave nothing behind on a connection."""
    pool: Pool = await asyncpg.create_pool(  # type: ignore[call-overload]
        database_url,
        min_size=0,
        max_size=size or settings.pool_size,
        timeout=max(settings.retry_deadline, 1.0),  # to connect: asyncpg would wait a minute for a server that hangs
        statement_cache_size=100 if settings.prepared_statements else 0,
        reset=_leave_as_is,
        connect=connect,
    )
    return pool


async def close_pool(pool: Pool) -> None:
    """Close a pool; what is not over after some seconds is cut off, for the server may hang.

    Errors from connections that the server already closed are ignored: asyncpg then drops the others.
    """
    with contextlib.suppress(*CONNECTION_LOST, asyncpg.InternalClientError):  # a TimeoutError is an OSError
        async with asyncio.timeout(_CLOSING):
            await pool.close()


async def _leave_as_is(connection: Connection) -> None:
    pass
