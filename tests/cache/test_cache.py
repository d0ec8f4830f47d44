"""The cache against a real Valkey: what it keeps, what it refuses to keep, and that its troubles are nobody's."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chatledger.cache.breaker import CircuitBreaker
from chatledger.cache.copies import CachedSession, _sealed
from chatledger.cache.link import SessionCache
from tests.helpers.valkey import Server

from .conftest import Clock, OpenCache

KEY = "chat:session:s"
CREATED = "2026-03-01T12:00:00.25+00:00"


def blocks_of(version: int, numbers: range) -> dict[int, bytes]:
    """Blocks that tell which version they are of."""
    return {n: f"block {n} of version {version} é\U0001f600".encode() for n in numbers}


def header(version: int, blocks: dict[int, bytes], **more: Any) -> dict[str, Any]:
    return {
        "session_id": "s",
        "user_id": "u",
        "version": version,
        "message_count": len(blocks),
        "next_sequence": max(blocks, default=-1) + 1,
        "created_at": CREATED,
        **more,
    }


async def put(
    cache: SessionCache, version: int = 1, count: int = 3, session_id: str = "s", **more: Any
) -> CachedSession:
    blocks = blocks_of(version, range(count))
    session = CachedSession(header(version, blocks, session_id=session_id, **more), blocks)
    await cache.put(session_id, session.header, session.blocks)
    return session


async def version_of(cache: SessionCache) -> object:
    session = await cache.get("s")
    return session and session.header["version"]


# What it keeps


@pytest.mark.parametrize("count", [0, 1, 3, 10_000])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_round_trip(server: Server, open_cache: OpenCache, count: int, protocol: int) -> None:
    cache = open_cache(f"{server.url}?protocol={protocol}")
    assert await cache.get("s") is None
    commands = server.calls()
    assert await cache.get("s") is None
    assert server.calls() == commands + 2  # PING and HGETALL
    session = await put(cache, count=count)
    got = await cache.get("s")
    assert got == session
    assert list(got.blocks) == list(range(count))
    await cache.drop("s")
    assert await cache.get("s") is None


async def test_odd_ids_and_blocks(cache: SessionCache) -> None:
    for session_id in ("a b\n{c}", "\U0001f600", "\0", "\ud800"):
        blocks = {0: b"\xff\r\n\0"}
        await cache.put(session_id, header(1, blocks, session_id=session_id), blocks)
        got = await cache.get(session_id)
        assert got is not None
        assert got.blocks == blocks


async def test_delta(cache: SessionCache) -> None:
    await put(cache, 5, count=12)
    blocks = blocks_of(5, range(12)) | blocks_of(7, range(10, 14))
    del blocks[2]
    after = header(7, blocks)
    await cache.update("s", 5, after, blocks_of(7, range(10, 14)), [2])
    got = await cache.get("s")
    assert got == CachedSession(after, blocks)
    assert list(got.blocks) == sorted(blocks)


async def test_delta_of_thousands(cache: SessionCache) -> None:
    await put(cache, 1, count=10_000)
    blocks = blocks_of(2, range(9_000, 19_000))
    await cache.update("s", 1, header(2, blocks), blocks, range(9_000))
    assert await cache.get("s") == CachedSession(header(2, blocks), blocks)


@pytest.mark.parametrize("base", [3, 4, 6, 7])
async def test_delta_on_another_version_leaves_the_copy(server: Server, cache: SessionCache, base: int) -> None:
    session = await put(cache, 5)
    await cache.update("s", base, header(base + 1, blocks_of(0, range(9))), blocks_of(0, range(9)), [0])
    assert await cache.get("s") == session
    assert server.redis.exists(KEY)


async def test_delta_without_a_copy_makes_none(server: Server, cache: SessionCache) -> None:
    await cache.update("s", 1, header(2, blocks_of(2, range(1))), blocks_of(2, range(1)), [])
    assert not server.redis.exists(KEY)


async def test_delta_of_another_session_with_that_id_leaves_the_copy(cache: SessionCache) -> None:
    session = await put(cache, 5)
    other = header(6, session.blocks, created_at="2026-03-02T12:00:00+00:00")
    await cache.update("s", 5, other, {}, [])
    assert await cache.get("s") == session


async def test_versions_too_large_for_a_double(cache: SessionCache) -> None:
    await put(cache, 2**53)
    blocks = blocks_of(0, range(3))
    await cache.update("s", 2**53 + 1, header(2**53 + 2, blocks), blocks, [])
    assert await version_of(cache) == 2**53


async def test_put_replaces_an_older_copy_only(cache: SessionCache) -> None:
    await put(cache, 5, count=9)
    await put(cache, 4)
    await put(cache, 5, title="another")
    assert await cache.get("s") == CachedSession(header(5, blocks_of(5, range(9))), blocks_of(5, range(9)))
    newer = await put(cache, 10, count=2)
    assert await cache.get("s") == newer


async def test_put_of_a_recreated_id_replaces_the_copy(cache: SessionCache) -> None:
    await put(cache, 50)
    recreated = await put(cache, 1, created_at="2026-03-02T12:00:00+00:00")
    assert await cache.get("s") == recreated


async def test_one_moment_in_two_time_zones_is_one_session(cache: SessionCache) -> None:
    await put(cache, 5)
    await put(cache, 4, created_at="2026-03-01T17:30:00.250000+05:30")
    assert await version_of(cache) == 5
    elsewhere = header(6, blocks_of(5, range(3)), created_at="2026-03-01T17:30:00.250000+05:30")
    await cache.update("s", 5, elsewhere, {}, [])
    assert await version_of(cache) == 6


async def test_one_of_many_concurrent_updates_wins(server: Server, open_cache: OpenCache) -> None:
    caches = [open_cache(server.url) for _ in range(4)]
    await put(caches[0], 0, count=30)

    async def write(worker: int) -> None:
        blocks = blocks_of(worker, range(30))
        await caches[worker % 4].update("s", 0, header(worker, blocks), blocks, [])

    seen: set[int] = set()

    async def read(cache: SessionCache) -> None:
        for _ in range(30):
            session = await cache.get("s")
            assert session is not None
            assert session.blocks == blocks_of(session.header["version"], range(30))
            seen.add(session.header["version"])

    await asyncio.gather(*map(read, caches), *map(write, range(1, 21)))
    assert len(seen - {0}) == 1


async def test_reads_are_whole_while_others_write(server: Server, open_cache: OpenCache) -> None:
    writers, reader = [open_cache(server.url) for _ in range(3)], open_cache(server.url)
    done = False

    async def write(cache: SessionCache, first: int) -> None:
        for version in range(first, 300, 3):
            await put(cache, version, count=version % 40)
            blocks = blocks_of(version, range(version % 40))
            await cache.update("s", version - 1, header(version, blocks), blocks, range(len(blocks), 40))

    async def read() -> int:
        hits = 0
        while not done:
            session = await reader.get("s")
            if session:
                version = session.header["version"]
                assert session.blocks == blocks_of(version, range(version % 40))
                hits += 1
        return hits

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(cache, first) for first, cache in enumerate(writers, 1)))
    done = True
    assert await reading > 0


async def test_ttl_is_set_by_every_write(server: Server, open_cache: OpenCache) -> None:
    cache = open_cache(server.url, cache_ttl=100)
    await put(cache, 1)
    assert 90_000 < server.redis.pttl(KEY) <= 100_000
    server.redis.persist(KEY)
    await cache.get("s")
    assert server.redis.pttl(KEY) == -1  # reading writes nothing
    await cache.update("s", 1, header(2, blocks_of(1, range(3))), {}, [])
    assert 90_000 < server.redis.pttl(KEY) <= 100_000
    server.redis.persist(KEY)
    await put(cache, 3)
    assert 90_000 < server.redis.pttl(KEY) <= 100_000


async def test_a_delta_costs_the_same_whatever_the_size(server: Server, cache: SessionCache) -> None:
    sent = []
    for count in (10, 10_000):
        blocks = blocks_of(1, range(100_000 - count, 100_000))
        await cache.put("s", header(1, blocks), blocks)
        await cache.update("s", 1, header(2, blocks), {}, [])  # so that the script is there
        change = blocks_of(2, range(100_000, 100_001))
        before = server.info("stats")["total_net_input_bytes"]
        await cache.update("s", 2, header(3, blocks | change), change, [])
        sent.append(server.info("stats")["total_net_input_bytes"] - before)
        assert await version_of(cache) == 3
        await cache.drop("s")
    assert abs(sent[1] - sent[0]) <= 8  # the digits of message_count
    assert sent[0] < 1000


# Garbage


def _set(field: str, value: str | bytes) -> Callable[[Server], object]:
    return lambda server: server.redis.hset(KEY, field, value)


def _set_header(value: str | bytes) -> Callable[[Server], object]:
    return _set("header", _sealed(b"header", value if isinstance(value, bytes) else value.encode()))


def _without(field: str) -> Callable[[Server], object]:
    return lambda server: server.redis.hdel(KEY, field)


def _string(server: Server) -> None:
    server.redis.delete(KEY)
    server.redis.set(KEY, "not a hash")


def _list(server: Server) -> None:
    server.redis.delete(KEY)
    server.redis.rpush(KEY, "not", "a hash")


GARBAGE: dict[str, Callable[[Server], object]] = {
    "string": _string,
    "list": _list,
    **{f"no {field}": _without(field) for field in ("format", "version", "created", "header")},
    "a block without its checksum": _set("1", "block"),
    "a block in another's place": _set("1", _sealed(b"2", b"block")),
    "another format": _set("format", "0"),
    "field is no number": _set("x", _sealed(b"x", b"block")),
    "version is no number": _set("version", "five"),
    "another version": _set("version", "4"),
    "another session": _set("created", "1"),
    "header without its checksum": _set("header", "{}"),
    "header is no JSON": _set_header("{"),
    "header is no object": _set_header("[1]"),
    "header is of another session": _set_header(json.dumps(header(5, {}, session_id="t"))),
    "header without a time": _set_header(json.dumps(header(5, {}, created_at=None))),
    "header of the year 1": _set_header(json.dumps(header(5, {}, created_at="0001-01-01T00+14"))),
    "header is deep": _set_header("[" * 200_000),
    "header is not UTF-8": _set_header(b"\xff"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_a_miss_and_goes(
    server: Server, cache: SessionCache, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await put(cache, 5)
    GARBAGE[kind](server)
    assert await cache.get("s") is None
    assert not server.redis.exists(KEY)
    again = await put(cache, 5)
    assert await cache.get("s") == again
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize("kind", ["string", "list", "no format", "no version", "no created", "another format"])
async def test_garbage_is_not_built_on(server: Server, cache: SessionCache, kind: str) -> None:
    await put(cache, 5)
    GARBAGE[kind](server)
    await cache.update("s", 5, header(6, blocks_of(5, range(3))), {}, [])
    assert not server.redis.exists(KEY)
    GARBAGE["string"](server)
    session = await put(cache, 1)
    assert await cache.get("s") == session


# Trouble


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records if record.name.startswith("chatledger.cache.")]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chatledger.cache")


async def every_call(cache: SessionCache) -> None:
    assert await cache.get("s") is None
    await put(cache)
    await cache.update("s", 1, header(2, blocks_of(1, range(3))), {}, [])
    await cache.drop("s")


async def look(cache: SessionCache) -> None:
    """Make the first call after a pause, and wait until it is known whether Redis is back."""
    assert await cache.get("s") is None
    assert cache._probe is not None
    await cache._probe


async def test_no_server(
    socket_folder: Path, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are tried one a pause, and the pauses double up to 30 s."""
    attempts = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    cache = open_cache(f"unix://{socket_folder}/v.sock")
    await every_call(cache)  # nobody listens
    server = await asyncio.start_unix_server(hang_up, f"{socket_folder}/v.sock")
    for pause in (1, 2, 4, 8, 16, 30, 30):
        tried = attempts
        clock.now += pause - 0.01
        await every_call(cache)
        assert attempts == tried
        clock.now += 0.02
        await every_call(cache)
        await look(cache)
        assert attempts == tried + 1
    assert said(caplog) == ["WARNING"]
    server.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"*2\r\n+OK\r\n:x\r\n", b"+A\r\n+B\r\n"]
)
async def test_something_else_answers(
    socket_folder: Path, open_cache: OpenCache, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Silence, and answers in other languages."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100_000):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(reply, f"{socket_folder}/v.sock") as server:
        cache = open_cache(f"unix://{socket_folder}/v.sock", timeout=0.02)
        for _ in range(3):
            await every_call(cache)
        assert len(said(caplog)) <= 1
        await cache.close()
        server.close()


async def test_stopped_server(
    own_server: Server, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Costs one call, also when many are made at once; no later one waits, and then the cache comes back."""
    cache = open_cache(own_server.url, timeout=0.02)
    patient = open_cache(own_server.url)
    session = await put(patient)
    assert await patient.get("s") == session
    connections, commands = own_server.info("stats")["total_connections_received"], own_server.calls()

    own_server.pause()
    assert await cache.get("s") is None
    for _ in range(20):
        await asyncio.gather(*(every_call(cache) for _ in range(20)))
    clock.now += 1.5
    await look(cache)
    clock.now += 2.5
    cache._timeout = 10
    await asyncio.gather(*(every_call(cache) for _ in range(20)))
    clock.now += 100
    await every_call(cache)  # one look at a time
    assert cache._probe is not None
    assert not cache._probe.done()  # so no call has waited for the answer
    assert said(caplog) == ["WARNING"]
    own_server.resume()
    await cache._probe
    assert await cache.get("s") == session
    assert said(caplog) == ["WARNING", "INFO"]
    assert own_server.info("stats")["total_connections_received"] == connections + 3
    assert own_server.calls() <= commands + 3 * 4  # the handshake, PING and HGETALL

    clock.now += 100
    own_server.pause()
    cache._timeout = 0.02
    assert await cache.get("s") is None
    assert said(caplog) == ["WARNING", "INFO", "WARNING"]


async def test_many_calls_at_once_share_the_wait(own_server: Server, open_cache: OpenCache, clock: Clock) -> None:
    """More calls than connections: those that wait for a connection are let go when the first ones fail."""
    cache = open_cache(own_server.url, timeout=0.02)
    connections = own_server.info("stats")["total_connections_received"]
    own_server.pause()
    assert await asyncio.gather(*(cache.get("s") for _ in range(500))) == [None] * 500
    own_server.resume()
    assert own_server.info("stats")["total_connections_received"] - connections <= 16
    clock.now += 1.01  # the pause after one failure, not after sixteen
    cache._timeout = 10
    await look(cache)
    session = await put(cache)
    assert await cache.get("s") == session


def test_answers_from_before_the_trouble_do_not_end_it(clock: Clock) -> None:
    breaker = CircuitBreaker("trouble", clock)
    early, late = breaker.enter(), breaker.enter()
    assert early is not None
    assert late is not None
    breaker.failed(late, OSError())
    breaker.succeeded(early)
    assert breaker.holds_back()


async def test_a_crowd_is_no_trouble(server: Server, cache: SessionCache, caplog: pytest.LogCaptureFixture) -> None:
    session = await put(cache)
    connections = server.info("stats")["total_connections_received"]
    assert await asyncio.gather(*(cache.get("s") for _ in range(500))) == [session] * 500
    assert server.info("stats")["total_connections_received"] - connections <= 16
    assert said(caplog) == []


async def test_a_stop_in_the_middle_of_an_answer(socket_folder: Path, open_cache: OpenCache, monkeypatch: Any) -> None:
    monkeypatch.setattr("chatledger.cache.link._LONGEST_ANSWER", 0.02)

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(100_000):
            writer.write(b"+PONG\r\n*4\r\n$7\r\nversion\r\n" if b"HGETALL" in request else b"+OK\r\n+OK\r\n")
        writer.close()

    async with await asyncio.start_unix_server(reply, f"{socket_folder}/v.sock") as server:
        cache = open_cache(f"unix://{socket_folder}/v.sock")
        assert await cache.get("s") is None
        await cache.close()
        server.close()


async def test_a_long_answer_is_waited_for(
    socket_folder: Path, open_cache: OpenCache, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has begun, the timeout is over."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(100_000):
            writer.write(b"+OK\r\n" * request.count(b"SETINFO"))
            if b"HGETALL" in request:
                writer.write(b"+PONG\r\n" * request.count(b"PING"))
                await asyncio.sleep(0.15)
                writer.write(b"*0\r\n")
        writer.close()

    async with await asyncio.start_unix_server(reply, f"{socket_folder}/v.sock") as server:
        cache = open_cache(f"unix://{socket_folder}/v.sock", timeout=0.1)
        assert await cache.get("s") is None
        assert said(caplog) == []
        await cache.close()
        server.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_busy_loop_is_not_the_servers_fault(
    server: Server, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    cache = open_cache(server.url)
    session = await put(cache)
    if not connected:
        await cache._disconnect_idle()
    cache._timeout = 0.05
    reading = asyncio.create_task(cache.get("s"))
    await asyncio.sleep(0)
    time.sleep(0.5)  # the loop does something else for ten times the limit
    assert await reading == session


async def test_the_next_try_is_with_a_new_connection(
    own_server: Server, server: Server, open_cache: OpenCache, clock: Clock
) -> None:
    """By then the address may be that of a server that took over."""
    cache = open_cache(own_server.url)
    await asyncio.gather(*(put(cache) for _ in range(5)))
    own_server.redis.config_set("maxmemory", 1)
    await put(cache, 2)
    own_server.hand_over_to(server)
    clock.now += 1.5
    session = await put(cache, 2)
    assert await cache.get("s") == session

    await asyncio.gather(*(cache.get("s") for _ in range(5)))
    cache._timeout = 0.02
    server.pause()
    assert await cache.get("s") is None
    own_server.hand_over_to(own_server)
    clock.now += 1.5
    cache._timeout = 10
    try:
        await look(cache)
        assert await cache.get("s") == CachedSession(header(1, blocks_of(1, range(3))), blocks_of(1, range(3)))
    finally:
        server.resume()


async def test_killed_and_restarted_server(
    own_server: Server, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(own_server.url)
    await put(cache)
    own_server.kill()
    await every_call(cache)
    assert said(caplog) == ["WARNING"]

    class Untouched(dict[int, bytes]):
        def items(self) -> Any:
            raise AssertionError("encoded in vain")

    await cache.put("s", header(1, {}), Untouched())
    own_server.start()
    connections = own_server.info("stats")["total_connections_received"]
    await every_call(cache)
    assert own_server.info("stats")["total_connections_received"] == connections
    clock.now += 1.5
    await look(cache)
    session = await put(cache)
    assert await cache.get("s") == session
    assert said(caplog) == ["WARNING", "INFO"]


@pytest.mark.parametrize("tcp", [True, False])
async def test_restart_between_two_calls_goes_unnoticed(
    own_server: Server, open_cache: OpenCache, caplog: pytest.LogCaptureFixture, tcp: bool
) -> None:
    own_server.kill()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    own_server.start("--port", port, "--bind", "127.0.0.1")
    cache = open_cache(f"redis://127.0.0.1:{port}" if tcp else own_server.url)
    await put(cache)
    own_server.kill()
    own_server.start("--port", port, "--bind", "127.0.0.1")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    session = await put(cache)
    assert await cache.get("s") == session
    assert said(caplog) == []


async def test_flushed_server(own_server: Server, open_cache: OpenCache, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(own_server.url)
    await put(cache)
    own_server.redis.flushall()
    own_server.redis.script_flush()
    assert await cache.get("s") is None
    session = await put(cache)
    assert await cache.get("s") == session
    own_server.redis.script_flush()
    await cache.update("s", 1, header(2, session.blocks), {}, [])
    assert await version_of(cache) == 2
    assert said(caplog) == []


@pytest.mark.parametrize("why", ["out of memory", "read only", "not allowed"])
async def test_a_server_that_takes_no_writes(
    own_server: Server, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """What it holds can be read; writes wait out the pauses; garbage is still a miss."""
    cache = open_cache(own_server.url)
    session = await put(cache)
    others = [header(1, {}, session_id=f"s{n}") for n in range(20)]
    change, redis = header(2, blocks_of(1, range(4))), own_server.redis
    if why == "out of memory":
        redis.config_set("maxmemory", 1)
    elif why == "read only":
        redis.replicaof("localhost", "1")
    else:
        own_server.allow("-evalsha", "-unlink")

    before = own_server.info("commandstats")["cmdstat_evalsha"]
    for _ in range(3):
        for other in others:
            await cache.put(other["session_id"], other, {})
        await cache.update("s", 1, change, blocks_of(2, range(3, 4)), [])
        assert await cache.get("s") == session
    after = own_server.info("commandstats")["cmdstat_evalsha"]
    count = sum(after[n] - before[n] for n in ("calls", "rejected_calls"))
    assert count == 1
    clock.now += 1.5
    await cache.update("absent", 1, header(2, {}, session_id="absent"), {}, [])  # refused or not, it proves nothing
    clock.now += 2.5
    await cache.put("s0", others[0], {})
    assert await cache.get("s0") is None
    assert await cache.get("s") == session
    if why == "read only":
        redis.config_set("replica-read-only", "no")
    elif why == "out of memory":
        redis.config_set("maxmemory", 0)
    _string(own_server)
    if why == "read only":
        redis.config_set("replica-read-only", "yes")
    assert await cache.get("s") is None
    assert said(caplog) == ["WARNING"]

    redis.replicaof("NO", "ONE")
    own_server.allow("+@all")
    clock.now += 30
    session = await put(cache)
    assert await cache.get("s") == session
    assert said(caplog) == ["WARNING", "INFO"]


@pytest.mark.parametrize("whole", [True, False])
async def test_without_memory_a_copy_stays_whole(own_server: Server, open_cache: OpenCache, whole: bool) -> None:
    cache = open_cache(own_server.url)
    session = await put(cache)
    own_server.redis.config_set("maxmemory", 1)
    if whole:
        await put(cache, 2, count=100)
    else:
        blocks = blocks_of(2, range(2, 100))
        await cache.update("s", 1, header(2, blocks), blocks, [0, 1])
    assert await cache.get("s") == session


async def test_a_server_that_refuses_reads(
    own_server: Server, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(own_server.url)
    session = await put(cache)
    own_server.allow("-hgetall")
    for version in range(2, 9):
        assert await cache.get("s") is None
        session = await put(cache, version)
    assert own_server.info("commandstats")["cmdstat_hgetall"]["rejected_calls"] == 1
    assert said(caplog) == ["WARNING"]
    own_server.allow("+hgetall")
    clock.now += 1.5
    assert await cache.get("s") == session
    assert said(caplog) == ["WARNING", "INFO"]


async def test_loading_server(own_server: Server, open_cache: OpenCache, caplog: pytest.LogCaptureFixture) -> None:
    own_server.redis.config_set("rdbcompression", "no")
    for n in range(500):
        own_server.redis.set(f"k{n}", "x" * 2000)
    own_server.redis.save()
    own_server.kill()
    own_server.start("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
    cache = open_cache(own_server.url)
    assert own_server.info("persistence")["loading"]
    await every_call(cache)
    assert said(caplog) == ["WARNING"]


# Cancelled calls


async def test_a_cancelled_call_keeps_its_answer(server: Server, open_cache: OpenCache) -> None:
    """Cancelled at each step that a call takes, with a connection that is open or is to be made."""
    sessions = {}
    for session_id in ("s", "t"):
        sessions[session_id] = await put(open_cache(server.url), session_id=session_id)
    cancelled = 0
    for fresh in (True, False):
        for steps in range(60):
            cache = open_cache(server.url)
            if not fresh:
                assert await cache.get("s") == sessions["s"]
            call = asyncio.create_task(cache.get("s"))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            ended = await asyncio.gather(call, return_exceptions=True)
            cancelled += isinstance(ended[0], asyncio.CancelledError)
            for session_id, session in sessions.items():
                assert await cache.get(session_id) == session
            await cache.close()
    assert cancelled > 5


async def test_cancelled_while_the_server_is_slow(own_server: Server, open_cache: OpenCache) -> None:
    cache = open_cache(own_server.url)
    sessions = {session_id: await put(cache, session_id=session_id) for session_id in "st"}
    own_server.pause()
    call = asyncio.create_task(cache.get("s"))
    while cache._idle:
        await asyncio.sleep(0)
    for _ in range(20):  # it is sent now
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not cache._idle
    own_server.resume()
    assert await cache.get("t") == sessions["t"]
    assert await cache.get("s") == sessions["s"]


async def test_closing_ends_the_look_at_a_stopped_server(
    own_server: Server, open_cache: OpenCache, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(own_server.url, timeout=0.02)
    own_server.pause()
    assert await cache.get("s") is None
    clock.now += 1.5
    cache._timeout = 10
    assert await cache.get("s") is None
    assert cache._probe is not None
    for _ in range(20):  # it waits for an answer now
        await asyncio.sleep(0)
    await cache.close()
    assert cache._probe.cancelled()
    own_server.resume()
    while own_server.info("clients")["connected_clients"] > 1:  # who asks
        await asyncio.sleep(0.001)
    assert said(caplog) == ["WARNING"]


# The rest


SECRET = "hunter2-%s"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_log_tells_no_secrets(
    own_server: Server, open_cache: OpenCache, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the password nor what is in the messages, whatever the server says."""
    caplog.set_level(logging.DEBUG)
    own_server.redis.config_set("requirepass", "other")
    url = f"{own_server.url}?password={SECRET}&protocol={protocol}"
    await every_call(open_cache(url))
    own_server.redis.auth("other")
    own_server.redis.config_set("requirepass", SECRET)
    own_server.allow("-evalsha")
    await every_call(open_cache(url))
    own_server.kill()
    await every_call(open_cache(url))
    assert len(said(caplog)) == 3
    assert "hunter2" not in caplog.text
    assert "m0" not in caplog.text


async def test_errors_are_not_quoted(
    socket_folder: Path, open_cache: OpenCache, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that does not know a command answers with all of it."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(100_000):
            for command in request.split(b"*")[1:]:
                writer.write(b"-ERR unknown command, with args: " + command.replace(b"\r\n", b" ") + b"\r\n")
        writer.close()

    async with await asyncio.start_unix_server(reply, f"{socket_folder}/v.sock") as server:
        caplog.set_level(logging.DEBUG, "chatledger")
        for query in ("", f"?password={SECRET}", f"?password={SECRET}&protocol=3"):
            cache = open_cache(f"unix://{socket_folder}/v.sock{query}")
            await put(cache)
            await every_call(cache)
            await cache.close()
        assert said(caplog).count("WARNING") >= 3
        assert "hunter2" not in caplog.text
        assert "message_id" not in caplog.text
        server.close()


@pytest.mark.parametrize(
    "url", ["redis://:hunter2/x@localhost", "http://:hunter2@localhost", "redis://:hunter2@h:p", "unix:///s?hunter2=1"]
)
def test_bad_url(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as caught:
        SessionCache(url, cache_ttl=1)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_bad_ttl(server: Server) -> None:
    with pytest.raises(ValueError, match="cache_ttl"):
        SessionCache(server.url, cache_ttl=0)


async def test_closed(server: Server, open_cache: OpenCache, caplog: pytest.LogCaptureFixture) -> None:
    cache, clients = open_cache(server.url), server.info("clients")["connected_clients"]
    await asyncio.gather(*(put(cache) for _ in range(5)))
    on_its_way = asyncio.create_task(cache.get("s"))
    await asyncio.sleep(0)
    await cache.close()
    await cache.close()
    await on_its_way
    while server.info("clients")["connected_clients"] > clients:
        await asyncio.sleep(0.001)
    commands = server.calls()
    await every_call(cache)
    assert server.calls() == commands
    assert said(caplog) == []


async def test_a_mistake_of_the_callers_is_not_hidden(cache: SessionCache) -> None:
    block: Any = "not bytes"
    calls: list[Awaitable[None]] = [
        cache.put("s", {}, {}),
        cache.put("s", header(1, {}), {0: block}),
        cache.update("s", 1, header(2, {}, created_at="soon"), {}, []),
    ]
    for call in calls:
        with pytest.raises((KeyError, TypeError, ValueError)):
            await call
