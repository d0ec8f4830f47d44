"""follow_session, and who is notified of what: followers, of every change, and nobody else of anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.helpers.sql import append, begin_stream, everything, new_session, refused, user_json, users

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection

SENTINEL = "sentinel"
# Each changes a session that new_session made with two messages; and by how much it advances the version.
CHANGES = {
    "append": (
        """select chatledger.append_messages('s1', array['{"message_id": "m9", "role": "user"}']::jsonb[])""",
        1,
    ),
    "amend": ("select chatledger.amend_message('s1', 'm0', '{\"content\": \"other\"}')", 1),
    "add_tool_call": ('select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\')', 1),
    "update": ("select chatledger.update_session('s1', p_title => 'Title')", 1),
    "usage": ("select chatledger.record_usage('s1', 'use', 1, 1)", 1),
    "truncate": ("select chatledger.truncate_session('s1', 1)", 1),
    "save": (
        """select chatledger.save_session('s1', p_read_version => 2, p_header => '{"title": {"to": "Title"}}',
            p_messages => array['{"message_id": "m9", "role": "user"}']::jsonb[])""",
        2,
    ),
    "delete": ("select chatledger.delete_session('s1')", 1),
}
UNCHANGED = [
    """select chatledger.append_messages('s1',
        array['{"message_id": "m0", "role": "user", "content": "hi"}']::jsonb[])""",
    "select chatledger.append_messages('s1', '{}')",
    "select chatledger.amend_message('s1', 'm0', '{\"content\": \"hi\"}')",
    "select chatledger.update_session('s1', p_pinned => false)",
    "select chatledger.truncate_session('s1', 2)",
    "select chatledger.read_session('s1')",
    "select chatledger.follow_session('s1')",
]


async def follow(connection: Connection, **arguments: Any) -> asyncpg.Record:
    (row,) = await connection.fetch(
        "select * from chatledger.follow_session($1, p_ttl => $2, p_echo => $3)",
        arguments.get("session_id", "s1"),
        arguments.get("ttl", timedelta(minutes=1)),
        arguments.get("echo", False),
    )
    return row


async def watched_until(connection: Connection) -> Any:
    return await connection.fetchval("select watched_until from chatledger.watches where session_id = 's1'")


@asynccontextmanager
async def notified(listener: Connection, connection: Connection, *channels: str) -> AsyncIterator[list[str]]:
    """Collects what the block notifies: all of it has arrived when the sentinel has, since they keep their order."""
    payloads: list[str] = []
    done = asyncio.Event()

    def collect(_: object, pid: int, channel: str, payload: object) -> None:
        if channel == SENTINEL:
            done.set()
        else:
            payloads.append(str(payload))

    for channel in (*channels, SENTINEL):
        await listener.add_listener(channel, collect)
    yield payloads
    await connection.execute("select pg_notify($1, '')", SENTINEL)
    async with asyncio.timeout(30):
        await done.wait()
    for channel in (*channels, SENTINEL):
        await listener.remove_listener(channel, collect)


# Who is notified


@pytest.mark.parametrize("change", CHANGES)
async def test_followers_are_notified_of_every_change_with_the_new_version(
    connection: Connection, connect: Connect, change: str
) -> None:
    await new_session(connection, users(2))
    channel = (await follow(connection))["channel"]
    statement, versions = CHANGES[change]
    async with notified(await connect(), connection, channel) as payloads:
        await connection.execute(statement)
    assert payloads == [str(2 + number) for number in range(1, versions + 1)]


@pytest.mark.parametrize("change", CHANGES)
async def test_nobody_is_notified_of_a_session_that_nobody_follows(
    connection: Connection, connect: Connect, change: str
) -> None:
    await new_session(connection, users(2))
    await new_session(connection, session_id="other")
    channel = await connection.fetchval("select channel from chatledger.watches where session_id = 's1'")
    await follow(connection, session_id="other")
    async with notified(await connect(), connection, channel) as payloads:
        await connection.execute(CHANGES[change][0])
    assert payloads == []


@pytest.mark.parametrize("statement", UNCHANGED)
async def test_nobody_is_notified_of_what_changes_nothing(
    connection: Connection, connect: Connect, statement: str
) -> None:
    await new_session(connection, users(2))
    channel = (await follow(connection))["channel"]
    async with notified(await connect(), connection, channel) as payloads:
        await connection.execute(statement)
    assert payloads == []


async def test_change_that_is_rolled_back_is_not_notified(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    channel = (await follow(connection))["channel"]
    async with notified(await connect(), connection, channel) as payloads:
        transaction = connection.transaction()
        await transaction.start()
        await append(connection, users(2))
        await transaction.rollback()
    assert payloads == []


async def test_watch_that_is_over_notifies_no_longer(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    channel = (await follow(connection))["channel"]
    await connection.execute("update chatledger.watches set watched_until = clock_timestamp()")
    async with notified(await connect(), connection, channel) as payloads:
        await append(connection, users(2))
    assert payloads == []


async def test_echo_is_a_notification_to_see_whether_they_arrive(connection: Connection, connect: Connect) -> None:
    await new_session(connection, users(2))
    channel = (await follow(connection))["channel"]
    async with notified(await connect(), connection, channel) as payloads:
        await follow(connection, echo=True)
    assert payloads == ["2"]


# The watch


async def test_following_changes_nothing_of_the_session(connection: Connection) -> None:
    await new_session(connection, users(2))
    before = await everything(connection)
    await follow(connection)

    def but_for_the_watch(rows: list[str]) -> list[Any]:
        return [{**json.loads(row), "watched_until": None} for row in rows]

    assert but_for_the_watch(await everything(connection)) == but_for_the_watch(before)
    assert await watched_until(connection) is not None


async def test_the_call_that_sets_the_watch_does_not_promise_it_yet(connection: Connection) -> None:
    """Others see it once it is committed."""
    await new_session(connection)
    assert (await follow(connection))["watched_for"] == timedelta(0)
    assert timedelta(seconds=59) < (await follow(connection))["watched_for"] <= timedelta(minutes=1)


async def test_watch_is_extended_when_less_than_half_of_it_is_left(connection: Connection) -> None:
    await new_session(connection)
    await follow(connection, ttl=timedelta(minutes=1))
    first = await watched_until(connection)

    row = await follow(connection, ttl=timedelta(minutes=1))
    assert await watched_until(connection) == first
    assert timedelta(seconds=30) < row["watched_for"] <= timedelta(minutes=1)

    row = await follow(connection, ttl=timedelta(minutes=10))
    assert await watched_until(connection) > first
    assert row["watched_for"] == timedelta(minutes=10)


async def test_longer_watch_is_not_cut_short(connection: Connection) -> None:
    await new_session(connection)
    await follow(connection, ttl=timedelta(minutes=10))
    row = await follow(connection, ttl=timedelta(seconds=1))
    assert row["watched_for"] > timedelta(minutes=9)


async def test_g5_a_watch_counts_only_once_no_writer_is_left_who_may_have_missed_it(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection)
    writer, next_writer = await connect(), await connect()
    async with writer.transaction():
        await append(writer, users(1))  # has looked for a watch: there was none
        for _ in range(3):
            assert (await asyncio.wait_for(follow(connection), 30))["watched_for"] == timedelta(0)
        assert await watched_until(connection) is not None
    row = await follow(connection)
    assert row["watched_for"] > timedelta(0)
    async with notified(await connect(), connection, row["channel"]) as payloads:
        await append(next_writer, [user_json("a")])
    assert payloads == ["3"]


async def test_a_follower_in_an_open_transaction_holds_nobody_up(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    reader, other = await connect(), await connect()
    async with reader.transaction():
        await follow(reader)
        await reader.fetch("select chatledger.follow_session(id) from chatledger.sessions")
        await append(connection, users(1))
        await begin_stream(connection)
        row = await asyncio.wait_for(follow(other), 30)
        assert row["watched_for"] == timedelta(0)  # its own watch could not be set
    assert (await follow(other))["watched_for"] > timedelta(0)


# Channels


async def test_every_session_has_a_channel_of_its_own_whatever_its_id(connection: Connection) -> None:
    ids = ["s1", "S1", "s1 ", "ä" * 255, "ä" * 254 + "a", "select; --", '"']
    channels = set()
    for session_id in ids:
        await new_session(connection, session_id=session_id)
        channels.add((await follow(connection, session_id=session_id))["channel"])
        # Created anew under the same id, it has another: who knows the id does not know the channel.
        await connection.execute("delete from chatledger.sessions where id = $1", session_id)
        await new_session(connection, session_id=session_id)
        channels.add((await follow(connection, session_id=session_id))["channel"])
    assert len(channels) == 2 * len(ids)
    for channel in channels:
        assert len(channel.encode()) <= 63
        await connection.execute(f"listen {channel}")  # also without quotes
    await connection.execute("unlisten *")


@pytest.mark.parametrize("session_id", ["gone", "unknown"])
async def test_session_that_is_not_there_cannot_be_followed(connection: Connection, session_id: str) -> None:
    await new_session(connection, session_id="gone")
    await connection.execute("select chatledger.delete_session('gone')")
    with refused("CL001", session_id=session_id):
        await follow(connection, session_id=session_id)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(hours=2), None])
async def test_g10_bad_ttl_is_refused(connection: Connection, ttl: timedelta | None) -> None:
    await new_session(connection)
    with refused("CL008", argument="ttl"):
        await follow(connection, ttl=ttl)
