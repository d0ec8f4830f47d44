"""Valkey servers: one for the run, and those that a test stops or kills."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from chatledger.cache.link import SessionCache
from tests.helpers.valkey import Server


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(_shared_server: Server) -> Server:
    """The run's server, empty."""
    _shared_server.redis.flushall()
    return _shared_server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server to stop, kill or fill."""
    server = Server()
    yield server
    server.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


OpenCache = Callable[..., SessionCache]


@pytest.fixture
async def open_cache(clock: Clock) -> AsyncIterator[OpenCache]:
    """Opens caches, with a time limit that a busy machine keeps, and closes them."""
    opened: list[SessionCache] = []

    def open_one(url: str, cache_ttl: float = 600, timeout: float = 10) -> SessionCache:
        opened.append(SessionCache(url, cache_ttl=cache_ttl, timeout=timeout, clock=clock))
        return opened[-1]

    yield open_one
    for cache in opened:
        await cache.close()


@pytest.fixture
def cache(server: Server, open_cache: OpenCache) -> SessionCache:
    """A cache on the run's server."""
    return open_cache(server.url)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="clv-"))
    yield folder
    shutil.rmtree(folder)
