"""G6: a read through the cache is never older than what was committed when it began, whatever happens to Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import chatledger
from chatledger import ChatLedger, ChatSession, MessageNotFound, Settings
from chatledger.cache.copies import _sealed, _unsealed
from chatledger.cache.link import SessionCache
from chatledger.postgres.encoding import encode_message
from tests.helpers.calls import real_call, replace_call
from tests.helpers.cancelling import small_ledger, was_cancelled_at
from tests.helpers.messages import user
from tests.helpers.properties import examples
from tests.helpers.sql import Psql

if TYPE_CHECKING:
    from tests.helpers.valkey import Server


def every_session(**settings: Any) -> Settings:
    """Settings with which small sessions are cached too."""
    return Settings(cache_min_messages=0, **settings)


def key(session: ChatSession) -> str:
    return f"chat:session:{session.session_id}"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for Redis as long as a busy machine needs."""
    monkeypatch.setattr("chatledger.resources.SessionCache", partial(SessionCache, timeout=10))


@pytest.fixture
async def cached(database_url: str, server: Server) -> AsyncIterator[ChatLedger]:
    """A ledger with a cache."""
    async with ChatLedger(database_url, server.url, settings=every_session()) as ledger:
        yield ledger


@pytest.fixture
async def other(database_url: str, server: Server) -> AsyncIterator[ChatLedger]:
    """Another process's ledger, as it were, on the same Postgres and Redis."""
    async with ChatLedger(database_url, server.url, settings=every_session()) as ledger:
        yield ledger


async def saved(ledger: ChatLedger, *texts: str) -> ChatSession:
    session = ChatSession.new(user_id="u1")
    session.messages = [user(text, metadata={"n": [1, None]}) for text in texts]
    await ledger.save_session(session)
    await ledger.get_session(session.session_id)  # fills the cache
    return session


async def load(ledger: ChatLedger, session: ChatSession) -> ChatSession:
    loaded = await ledger.get_session(session.session_id)
    assert loaded is not None
    return loaded


async def test_the_copy_equals_what_postgres_has(cached: ChatLedger, ledger: ChatLedger, server: Server) -> None:
    session = await saved(cached, "one", "two")
    assert server.redis.exists(key(session))
    assert await load(cached, session) == session == await load(ledger, session)
    server.redis.delete(key(session))
    assert await load(cached, session) == session


async def test_a_small_session_is_not_worth_a_copy(database_url: str, server: Server) -> None:
    async with ChatLedger(database_url, server.url, settings=Settings(cache_min_messages=3)) as ledger:
        small, large = await saved(ledger, *"ab"), await saved(ledger, *"abc")
        assert not server.redis.exists(key(small))
        assert server.redis.exists(key(large))
        assert [await load(ledger, one) for one in (small, large)] == [small, large]


async def test_session_ttl_of_the_settings(database_url: str, server: Server) -> None:
    async with ChatLedger(database_url, server.url, settings=every_session(cache_ttl=100)) as ledger:
        session = await saved(ledger, "one")
    assert 90_000 < server.redis.pttl(key(session)) <= 100_000


async def test_an_unchanged_session_comes_from_the_copy(cached: ChatLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await saved(cached, *"abc")
    read: list[int] = []
    real = real_call("read_changes")

    async def counted(*arguments: Any) -> Any:
        changes = await real(*arguments)
        read.append(len(changes.messages) if changes else -1)
        return changes

    replace_call(monkeypatch, "read_changes", counted)
    await load(cached, session)
    await cached.append_messages(session.session_id, [user("d")])
    assert len((await load(cached, session)).messages) == 4
    await load(cached, session)
    assert read == [0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        """append_messages('{id}', array['{"message_id": "p", "role": "user", "content": "psql"}']::jsonb[])""",
        "amend_message('{id}', '{first}', '{\"content\": \"psql\"}')",
        'add_tool_call(\'{id}\', \'{"id": "c1", "function": {"name": "f"}}\')',
        "truncate_session('{id}', 1)",
        "update_session('{id}', p_title => 'psql')",
        "record_usage('{id}', 'use', 1, 2)",
        "delete_session('{id}')",
    ],
)
async def test_a_change_in_psql_shows_in_the_very_next_read_of_every_process(
    cached: ChatLedger, other: ChatLedger, ledger: ChatLedger, psql: Psql, change: str
) -> None:
    session = await saved(cached, "one", "two", "three")
    first = session.messages[0].message_id
    await psql(f"select chatledger.{change}".replace("{id}", session.session_id).replace("{first}", first))
    truth = await ledger.get_session(session.session_id)
    assert truth != session
    for reader in (cached, other, cached):
        assert await reader.get_session(session.session_id) == truth


async def test_an_id_that_is_purged_and_created_anew_is_another_session(cached: ChatLedger) -> None:
    session = await saved(cached, "old", "old")
    await cached.delete_session(session.session_id)
    await cached.purge_sessions(timedelta(0))
    anew = ChatSession.new(user_id="u1", session_id=session.session_id)
    anew.messages = [user("new"), user("new")]
    await cached.save_session(anew)
    for _ in range(2):
        assert await load(cached, anew) == anew


async def test_a_deleted_session_leaves_no_copy_behind(cached: ChatLedger, psql: Psql, server: Server) -> None:
    session, by_psql = await saved(cached, "one"), await saved(cached, "two")
    await cached.delete_session(session.session_id)
    await psql(f"select chatledger.delete_session('{by_psql.session_id}')")
    assert await cached.get_session(by_psql.session_id, user_id="u1") is None
    assert not server.redis.exists(key(session), key(by_psql))


async def test_g8_a_copy_is_not_for_others(cached: ChatLedger, server: Server) -> None:
    session = await saved(cached, "one")
    assert await cached.get_session(session.session_id, user_id="u2") is None
    assert await cached.get_session(session.session_id, user_id="u1") is not None
    assert server.redis.exists(key(session))


async def test_an_appended_message_is_in_the_session_that_comes_back(database_url: str, server: Server) -> None:
    async with ChatLedger(database_url, server.url, settings=every_session()) as ledger:
        chatledger.set_default_ledger(ledger)
        session = await saved(ledger, "one")
        updated = await chatledger.append_and_save_message(session.session_id, user("two"))
        await chatledger.close_default_ledger()
    assert updated is not None
    assert [message.content for message in updated.messages] == ["one", "two"]


async def test_nothing_of_an_open_transaction_reaches_the_cache(
    cached: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], server: Server
) -> None:
    session = await saved(cached, "one")
    server.redis.flushall()
    transaction = connection.transaction()
    await transaction.start()
    inside = ChatLedger(connection, server.url, settings=every_session())
    await inside.append_messages(session.session_id, [user("not committed")])
    assert len((await load(inside, session)).messages) == 2
    assert not server.redis.exists(key(session))
    assert len((await load(cached, session)).messages) == 1
    await transaction.rollback()
    assert len((await load(cached, session)).messages) == 1


@pytest.mark.parametrize(
    "garbage", ["string", "nonsense", "no row", "a row less", "tool calls", "old format", "header"]
)
async def test_garbage_in_the_cache_changes_no_answer(cached: ChatLedger, server: Server, garbage: str) -> None:
    session = await saved(cached, "one", "two")
    name = key(session)
    if garbage == "string":
        server.redis.set(name, "nonsense")
    elif garbage == "nonsense":
        server.redis.hset(name, "0", "nonsense")
    elif garbage == "no row":
        server.redis.hset(name, "0", _sealed(b"0", b'[["m", 0, "yesterday", null, 7]]'))
    elif garbage in ("a row less", "tool calls"):
        held: Any = server.redis.hget(name, "0")
        [row, *more] = json.loads(_unsealed(b"0", held))
        rows = more if garbage == "a row less" else [[*row[:11], "nonsense", *row[12:]], *more]
        server.redis.hset(name, "0", _sealed(b"0", json.dumps(rows).encode()))
    elif garbage == "old format":
        server.redis.hset(name, "format", "0")
    else:
        server.redis.hset(name, "header", "{}")
    for _ in range(2):
        assert await load(cached, session) == session


async def test_a_damaged_copy_leaves_no_task_behind(
    cached: ChatLedger, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await saved(cached, "one")
    asked, real = [], real_call("read_changes")

    async def slow_where_there_is_a_copy(*arguments: Any) -> Any:
        if arguments[3] is not None:
            asked.append(asyncio.current_task())
            await asyncio.Event().wait()
        return await real(*arguments)

    replace_call(monkeypatch, "read_changes", slow_where_there_is_a_copy)
    server.redis.hset(key(session), "0", _sealed(b"0", b"[]"))
    assert await load(cached, session) == session
    [task] = asked
    assert task is not None
    assert task.cancelled()


@pytest.mark.parametrize("copy", ["none", "old", "damaged"])
async def test_a_read_may_be_cancelled_at_every_await_and_made_again(
    cached: ChatLedger, database_url: str, server: Server, copy: str
) -> None:
    for number in range(1, 200):
        session = await saved(cached, "one")
        if copy == "old":
            await cached.append_messages(session.session_id, [user("two")])
        elif copy == "damaged":
            server.redis.hset(key(session), "0", _sealed(b"0", b"[]"))
        else:
            server.redis.delete(key(session))
        async with small_ledger(database_url, server.url, every_session()) as small:
            cancelled = await was_cancelled_at(number, small.get_session(session.session_id))
            for _ in range(2):
                loaded = await load(small, session)
                assert [message.content for message in loaded.messages] == ["one", "two"][: 1 + (copy == "old")]
        if not cancelled:
            assert number > 3
            return
    pytest.fail("it never comes to its end")


ODD = [b"", b"0", b"-1", b"null", b"{}", b"[]", b'{"role": "user"}', b"9" * 5000, b"[" * 5000]
FIELDS = [b"0", b"1", b"2", b"format", b"created", b"version", b"header"]
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip a bit", "replace", "cut", "swap", "delete", "add"]),
        st.sampled_from(FIELDS),
        st.sampled_from(FIELDS),
        st.integers(0, 5000),
        st.sampled_from(ODD) | st.binary(max_size=20),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture
async def damaged(cached: ChatLedger) -> ChatSession:
    """A session whose copy gets damaged."""
    assert cached._resources is not None
    assert cached._resources.cache is not None
    cached._resources.cache._timeout = 10  # a busy machine must not make it look as if there were no copy
    return await saved(cached, *map(str, range(40)))  # three blocks


@examples
@given(damages=damages)
async def test_g6_any_damage_to_a_copy_changes_no_answer(
    cached: ChatLedger, server: Server, damaged: ChatSession, damages: list[tuple[str, bytes, bytes, int, bytes]]
) -> None:
    name = key(damaged)
    server.redis.delete(name)
    await load(cached, damaged)  # stores a sound copy
    held: Any = server.redis.hgetall(name)
    assert sorted(held) == sorted(FIELDS)
    for what, field, other, number, junk in damages:
        value = bytearray(held[field])
        if what == "flip a bit":
            value[number // 8 % len(value)] ^= 1 << number % 8
        elif what == "replace":
            value = bytearray(junk)
        elif what == "cut":
            del value[number % len(value) :]
        elif what == "swap":
            value = bytearray(held[other])
        elif what == "add":
            field = junk
        if what == "delete":
            server.redis.hdel(name, field.decode())
        else:
            server.redis.hset(name, field, bytes(value))
    for _ in range(2):
        assert await load(cached, damaged) == damaged


async def test_redis_stopped_killed_and_back(
    database_url: str, own_server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.resources.SessionCache", SessionCache)
    async with ChatLedger(database_url, own_server.url, settings=every_session()) as ledger:
        session = await saved(ledger, "one")
        own_server.pause()
        for n in range(5):
            session.messages.append(user(f"paused {n}"))
            await ledger.save_session(session)
            assert await load(ledger, session) == session
        own_server.resume()
        own_server.kill()
        session.messages.append(user("killed"))
        await ledger.save_session(session)
        assert await load(ledger, session) == session
        assert [record.levelname for record in caplog.records] == ["WARNING"]  # once for all of it
        own_server.start()
        assert await load(ledger, session) == session


async def test_without_redis_at_all(database_url: str) -> None:
    async with ChatLedger(database_url, "unix:///nowhere/redis.sock", settings=every_session()) as ledger:
        session = await saved(ledger, "one")
        assert await load(ledger, session) == session


async def counting(listen: str, to: str, stack: AsyncExitStack) -> list[int]:
    """Pass connections to one socket on to another; return a list of one: how many bytes went there."""
    sent = [0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                sent[0] += len(data) * up
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(to)
        await asyncio.gather(pump(reader, there[1], True), pump(there[0], writer, False))

    await stack.enter_async_context(await asyncio.start_unix_server(connected, listen))
    return sent


async def test_g12_one_new_message_costs_the_same_bytes_whatever_the_session_holds(
    database_url: str, server: Server, socket_folder: Path
) -> None:
    """Counted on the wire: what a save sends to Postgres, and what it and the next read write to Redis."""
    host = parse_qs(urlsplit(database_url).query)["host"][0]
    costs = []
    async with AsyncExitStack() as stack:
        name = "/.s.PGSQL.5432"
        to_postgres = await counting(f"{socket_folder}{name}", f"{host}{name}", stack)
        to_redis = await counting(f"{socket_folder}/redis", server.socket, stack)
        url, redis_url = database_url.replace(quote(host), quote(str(socket_folder))), f"unix://{socket_folder}/redis"
        ledger = await stack.enter_async_context(
            ChatLedger(url, redis_url, settings=every_session(pool_size=1, retry_deadline=0))
        )
        for count in (10, 10_010):  # as full a last block
            session = ChatSession.new(user_id="u1")
            session.messages = [user("text") for _ in range(count)]
            await ledger.save_session(session)
            for _ in range(2):  # the first time, statements are prepared
                await load(ledger, session)
                session.messages.append(user("hi"))
                to_postgres[0] = to_redis[0] = 0
                await ledger.save_session(session)
                written = to_postgres[0], to_redis[0]
                await load(ledger, session)
            costs.append((*written, to_redis[0]))
    (small, at_save, at_read), large = costs
    assert at_save == 0  # writes leave the cache alone
    assert large[:2] == (small, 0)
    # Numbers in the copy have two digits here, five there.
    assert 0 < at_read <= large[2] <= 1.05 * at_read


async def test_sixteen_writers_and_sixteen_readers_with_flushes(database_url: str, server: Server, psql: Psql) -> None:
    """Each read has all that was acknowledged before it began, and every batch whole, as it was amended and truncated.

    A quarter writes in psql, and one reads there.
    """
    choice = random.Random(7)
    settings = every_session(pool_size=8)
    async with (
        ChatLedger(database_url, server.url, settings=settings) as one,
        ChatLedger(database_url, server.url, settings=settings) as two,
    ):
        session = await saved(one)
        stored: dict[str, int] = {}
        amended: set[str] = set()
        cuts: dict[int, float] = {}  # from which sequence on, and up to which: as far as that is known
        writing = 16

        async def write(n: int) -> None:
            nonlocal writing
            for batch in range(12):
                ids = [f"{n}-{batch}-{i}" for i in range(choice.randint(1, 4))]
                messages = [user(text, message_id=text, name=f"{n}-{batch}-{len(ids)}") for text in ids]
                ledger = choice.choice((one, two))
                if n % 4:
                    receipts = await ledger.append_messages(session.session_id, messages)
                    sequences = [receipt.sequence for receipt in receipts]
                else:
                    array = ", ".join(f"'{encode_message(message, 0)}'" for message in messages)
                    append = f"chatledger.append_messages('{session.session_id}', array[{array}]::jsonb[])"
                    sequences = [*map(int, (await psql(f"select sequence from {append}")).split())]
                stored.update(zip(ids, sequences, strict=True))
                if choice.random() < 0.3:
                    with contextlib.suppress(MessageNotFound):  # truncated
                        await ledger.amend_message(session.session_id, ids[0], {"content": "amended"})
                        amended.add(ids[0])
                if n == 1 and batch in (4, 8):
                    cuts[sequences[0]] = math.inf
                    truncation = await ledger.truncate_session(session.session_id, sequences[0])
                    cuts[sequences[0]] = truncation.next_sequence
                if choice.random() < 0.1:
                    server.redis.flushall()
            writing -= 1

        async def by_a_ledger() -> list[tuple[str, int, str, str]]:
            seen = await load(choice.choice((one, two)), session)
            assert seen.message_count == len(seen.messages)
            return [(m.message_id, m.sequence, m.name, m.content) for m in seen.messages]  # type: ignore[misc]

        async def by_psql() -> list[tuple[str, int, str, str]]:
            messages = f"chatledger.get_messages('{session.session_id}', p_limit => null)"
            row = "json_build_array(message_id, sequence, name, content)"
            return [*map(tuple, json.loads(await psql(f"select coalesce(json_agg({row}), '[]') from {messages}")))]

        async def read(look: Callable[[], Awaitable[list[tuple[str, int, str, str]]]]) -> int:
            reads = 0
            while writing:
                stored_before, amended_before, cuts_before = dict(stored), set(amended), dict(cuts)
                seen = await look()
                reads += 1
                contents = {message_id: content for message_id, _, _, content in seen}
                sequences = [sequence for _, sequence, _, _ in seen]
                assert sequences == sorted(set(sequences))
                lost = {stored_before[message_id] for message_id in stored_before.keys() - contents.keys()}
                assert all(any(start <= sequence < end for start, end in cuts.items()) for sequence in lost)
                done = [(start, end) for start, end in cuts_before.items() if end < math.inf]
                assert not any(start <= sequence < end for start, end in done for sequence in sequences)
                assert all(contents[message_id] == "amended" for message_id in amended_before & contents.keys())
                whole = Counter(name for _, _, name, _ in seen)
                assert all(count == int(name.rsplit("-", 1)[1]) for name, count in whole.items())
            return reads

        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(read(by_psql if n == 0 else by_a_ledger)) for n in range(16)]
            for n in range(16):
                group.create_task(write(n))
        assert all(task.result() for task in reads)
        assert len(cuts) == 2
        left = [m.sequence for m in (await load(two, session)).messages]
        assert left == sorted(s for s in stored.values() if not any(start <= s < end for start, end in cuts.items()))
