"""What an open ledger holds: connections, servers, cache; opened together and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import asyncpg

from chatledger.cache.link import SessionCache
from chatledger.errors import ChatLedgerError
from chatledger.following.listener import Listener, listening_connection
from chatledger.postgres.combining import Combiner
from chatledger.postgres.connections import Database, close_pool, open_pool
from chatledger.postgres.migrations import migrate

if TYPE_CHECKING:
    from chatledger.config import Settings
    from chatledger.postgres.connections import Pool
    from chatledger.postgres.functions import Connection, Result


class Resources:
    """The resources of one open ledger.

    Attributes:
        database: Where calls run.
        heartbeats: Where the heartbeats of streams run: on a connection of their own, so that they do not wait for
            calls that wait for a lock. On a pool of the caller's, on that.
        combiner: Puts appends to one session together; None on a caller's connection, since each call belongs to the
            transaction that is open there.
        cache: Copies of sessions, where there is a Redis; None on a caller's connection, since others must not see what
            is not committed.
        database_url: Where the database is; None on a pool or connection of the caller's.
    """

    database: Database
    heartbeats: Database
    combiner: Combiner | None = None
    cache: SessionCache | None = None
    database_url: str | None = None

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source: Pool | Connection | None = None
        self._listener: Listener | None = None
        self._closed = False
        self._opened = AsyncExitStack()  # what close() closes, the last one first

    @classmethod
    async def open(cls, given: str | Pool | Connection | None, redis_url: str | None, settings: Settings) -> Self:
        """Open what a ledger needs; of an opening that fails or is cancelled, nothing stays open.

        Args:
            given: A URL, or the caller's pool or connection; None: an embedded Postgres.
            redis_url: For the cache; None: that of the embedded servers, if they are used.
            settings: The ledger's.
        """
        resources = cls(settings)
        try:
            await resources._open(given, redis_url)
        except BaseException:
            await resources.close()
            raise
        return resources

    async def _open(self, given: str | Pool | Connection | None, redis_url: str | None) -> None:
        if given is None:
            from chatledger import embedded

            servers = await asyncio.to_thread(embedded.start, self._settings.data_dir)
            self._opened.push_async_callback(asyncio.to_thread, servers.close)
            given, redis_url = servers.database_url, redis_url or servers.redis_url
            self._source = await self._open_pool(given)
            async with self._source.acquire() as connection:
                await migrate(connection)
        else:
            self._source = await self._open_pool(given) if isinstance(given, str) else given
        self.database = self.heartbeats = Database(self._source, self._settings)
        if isinstance(given, str):
            self.database_url = given
            self.heartbeats = Database(await self._open_pool(given, size=1), self._settings)
        if isinstance(self._source, asyncpg.Pool):
            self.combiner = Combiner(self.run)
            if redis_url is not None:
                self.cache = SessionCache(redis_url, cache_ttl=self._settings.cache_ttl)
                self._opened.push_async_callback(self.cache.close)

    async def _open_pool(self, url: str, size: int | None = None) -> Pool:
        pool = await open_pool(url, self._settings, size=size)
        self._opened.push_async_callback(close_pool, pool)
        return pool

    async def run(self, call: Callable[[Connection], Awaitable[Result]], *, repeatable: bool = True) -> Result:
        """Run a call on the database; see :meth:`Database.run`.

        Raises:
            ChatLedgerError: The ledger was closed; or as :meth:`Database.run`.
        """
        if self._closed:
            raise ChatLedgerError("the ledger was closed", hint="Make calls before you close it, or open it again")
        return await self.database.run(call, repeatable=repeatable)

    async def listener(self) -> Listener:
        """Return what wakes followers; opened by the first one.

        Raises:
            ChatLedgerError: The ledger is on a caller's connection.
        """
        if self._listener is None:
            source = self._settings.listen_url or self.database_url or self._source
            if not isinstance(source, str | asyncpg.Pool):
                raise ChatLedgerError("following needs a ledger on a URL or a pool, not on a connection")
            self._listener = Listener(lambda: listening_connection(source), self.database, self._settings.follow_ttl)
            self._opened.push_async_callback(self._listener.close)
        return self._listener

    async def close(self) -> None:
        """Close all of it, also when this call is cancelled. Calls under way have ten seconds to end."""
        self._closed = True
        await self._opened.aclose()
