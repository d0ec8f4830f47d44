"""G1 to G5 while many write at once, from this process and from psql."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.helpers.sql import (
    Json,
    add_call,
    amend,
    append,
    assistant,
    bodies,
    call,
    everything,
    header,
    new_session,
    places,
    said,
    until_waiting,
    updated_at,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection, Psql

# Sixteen writers

WRITERS, BATCHES = 16, 50


def batches_of(writer: int) -> list[list[Json]]:
    """A writer's batches of 1 to 7 messages; an id says whose message it is, in which batch, and where there."""
    sizes = random.Random(writer)
    return [
        [user_json(f"{writer}/{batch}/{place}") for place in range(sizes.randint(1, 7))] for batch in range(BATCHES)
    ]


def as_sql(batch: list[Json]) -> str:
    elements = ", ".join(f"'{json.dumps(message)}'" for message in batch)
    return f"select from chatledger.append_messages('s1', array[{elements}]::jsonb[]);"


async def test_g1_g2_g5_sixteen_writers_half_of_them_psql(connection: Connection, connect: Connect, psql: Psql) -> None:
    await new_session(connection)
    connections = [await connect() for _ in range(WRITERS // 2)]
    reader = await connect()

    async def in_this_process(writer: int) -> None:
        for batch in batches_of(writer):
            await append(connections[writer // 2], batch)

    async def in_psql(writer: int) -> None:
        await psql("\n".join(map(as_sql, batches_of(writer))))

    async def read_until(done: asyncio.Event) -> int:
        """What was read once stays as it was, in the same place; new messages only come after it."""
        seen: list[asyncpg.Record] = []
        reads = 0
        while not done.is_set():
            rows = await reader.fetch("select sequence, message_id, created_at from chatledger.read_session('s1')")
            assert rows[1 : len(seen) + 1] == seen
            seen = rows[1:]
            reads += 1
        return reads

    done = asyncio.Event()
    reading = asyncio.create_task(read_until(done))
    await asyncio.gather(*((in_psql if writer % 2 else in_this_process)(writer) for writer in range(WRITERS)))
    done.set()
    assert await reading > 1

    rows = await connection.fetch("select sequence, message_id, created_at from chatledger.messages order by sequence")
    assert [row["sequence"] for row in rows] == [*range(len(rows))]

    stored = [tuple(map(int, row["message_id"].split("/"))) for row in rows]
    by_writer = defaultdict(list)
    for writer, batch, place in stored:
        by_writer[writer].append((batch, place))
    for writer in range(WRITERS):
        given = [(batch, place) for batch, messages in enumerate(batches_of(writer)) for place in range(len(messages))]
        assert by_writer[writer] == given

    times: dict[Any, set[Any]] = defaultdict(set)
    for (writer, batch, place), following in pairwise(stored):
        if place + 1 < len(batches_of(writer)[batch]):
            assert following == (writer, batch, place + 1)
    for (writer, batch, _), row in zip(stored, rows, strict=True):
        times[writer, batch].add(row["created_at"])
    assert {len(of_a_batch) for of_a_batch in times.values()} == {1}
    assert all(earlier["created_at"] <= later["created_at"] for earlier, later in pairwise(rows))
    assert await updated_at(connection) == rows[-1]["created_at"]
    assert (await header(connection))["version"] == 1 + WRITERS * BATCHES
    assert await connection.fetch("select * from chatledger.verify_session('s1')") == []


# Twenty at once: all wait for the session, then go on one after the other.


async def at_once(connection: Connection, connect: Connect, calls: list[Any]) -> list[Any]:
    """Results or errors of the calls, each on a connection of its own; none begins before all of them wait."""
    holder, *callers = [await connect() for _ in range(len(calls) + 1)]
    holding = holder.transaction()
    await holding.start()
    await holder.execute("select from chatledger.sessions for no key update")
    running = [asyncio.create_task(one_call(caller)) for one_call, caller in zip(calls, callers, strict=True)]
    await until_waiting(connection, len(calls))
    await holding.rollback()
    return await asyncio.gather(*running, return_exceptions=True)


async def test_g3_the_same_batch_from_twenty_callers_is_stored_once(connection: Connection, connect: Connect) -> None:
    await new_session(connection, users(2))

    answers = await at_once(connection, connect, [lambda caller: append(caller, users(3, "b"))] * 20)

    assert [[row["sequence"] for row in rows] for rows in answers] == [[2, 3, 4]] * 20
    assert sum(row["appended"] for rows in answers for row in rows) == 3
    assert len({row["created_at"] for rows in answers for row in rows}) == 1
    assert len(await places(connection)) == 5


async def test_of_twenty_who_expect_the_same_sequence_exactly_one_wins(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection, users(2))

    def attempt(number: int) -> Any:
        return lambda caller: append(caller, [user_json(f"by {number}")], expected_sequence=2)

    answers = await at_once(connection, connect, [attempt(number) for number in range(20)])

    (winner,) = [number for number, answer in enumerate(answers) if not isinstance(answer, BaseException)]
    lost = [said(answer) for number, answer in enumerate(answers) if number != winner]
    assert {(error["sqlstate"], error["detail"]["next_sequence"]) for error in lost} == {("CL002", 3)}
    assert await places(connection) == [(0, "m0"), (1, "m1"), (2, f"by {winner}")]

    (again,) = await attempt(winner)(connection)
    assert tuple(again)[:3] == tuple(answers[winner][0])[:3]
    assert not again["appended"]


async def test_g4_two_who_add_a_tool_call_each_both_succeed(connection: Connection, connect: Connect) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1")])

    answers = await at_once(
        connection, connect, [lambda caller: add_call(caller, call("c1")), lambda caller: add_call(caller, call("c2"))]
    )

    assert [(row["message_id"], row["added"]) for row in answers] == [("m1", True), ("m1", True)]
    (_, message) = await bodies(connection)
    assert sorted(added["id"] for added in message["tool_calls"]) == ["c1", "c2"]


async def test_g4_two_who_add_the_first_tool_calls_of_a_turn_make_one_message(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection, [user_json("m0")])

    await at_once(
        connection, connect, [lambda caller: add_call(caller, call("c1")), lambda caller: add_call(caller, call("c2"))]
    )

    (_, message) = await bodies(connection)
    assert sorted(added["id"] for added in message["tool_calls"]) == ["c1", "c2"]


async def test_g3_the_same_tool_call_from_twenty_is_added_once(connection: Connection, connect: Connect) -> None:
    await new_session(connection, [assistant("m0")])

    answers = await at_once(connection, connect, [lambda caller: add_call(caller, call("c1"))] * 20)

    assert sum(row["added"] for row in answers) == 1
    assert await bodies(connection) == [assistant("m0", call("c1"))]


async def test_tool_call_after_a_user_message_that_came_first_gets_a_message_of_its_own(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1")])
    asker, caller = await connect(), await connect()

    asking = asker.transaction()
    await asking.start()
    await append(asker, [user_json("m2")])
    adding = asyncio.create_task(add_call(caller, call("c1"), message_id="m3"))
    await until_waiting(connection)
    await asking.commit()

    assert tuple(await adding)[:2] == ("m3", 3)
    assert [message["message_id"] for message in await bodies(connection)] == ["m0", "m1", "m2", "m3"]


async def test_g4_of_twenty_stale_amendments_exactly_one_wins(connection: Connection, connect: Connect) -> None:
    await new_session(connection, users(1))

    def attempt(number: int) -> Any:
        return lambda caller: amend(caller, "m0", {"content": f"by {number}"}, expected_version=2)

    answers = await at_once(connection, connect, [attempt(number) for number in range(20)])

    (winner,) = [number for number, answer in enumerate(answers) if not isinstance(answer, BaseException)]
    assert {said(answer)["sqlstate"] for number, answer in enumerate(answers) if number != winner} == {"CL004"}
    assert await bodies(connection) == [user_json("m0", f"by {winner}")]


async def test_g4_metadata_keys_usage_and_titles_of_twenty_all_stay(connection: Connection, connect: Connect) -> None:
    await new_session(connection)

    def change(number: int) -> Any:
        return lambda caller: caller.execute(
            "select chatledger.update_session('s1', p_metadata => jsonb_build_object($1::text, 1), p_title => $1, "
            "p_only_if_empty => true)"
            if number % 2
            else "select chatledger.record_usage('s1', $1, 1, 1)",
            str(number),
        )

    await at_once(connection, connect, [change(number) for number in range(20)])

    found = await header(connection)
    assert sorted(map(int, found["metadata"])) == [*range(1, 20, 2)]
    assert found["title"] in found["metadata"]
    assert (found["total_tokens"], found["version"]) == (20, 21)


async def test_create_session_by_twenty_makes_one(connection: Connection, connect: Connect) -> None:
    callers = [await connect() for _ in range(20)]
    create = "select to_jsonb(chatledger.create_session('s1', 'u1', $1))"
    answers = await asyncio.gather(*(caller.fetchval(create, f"by {i}") for i, caller in enumerate(callers)))
    assert len(set(answers)) == 1


async def test_writers_of_different_sessions_do_not_wait_for_each_other(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection)
    await new_session(connection, session_id="s2")
    other = await connect()
    async with other.transaction():
        await append(other, users(1))
        await connection.execute("set lock_timeout = '5s'")
        assert len(await append(connection, users(1), session_id="s2")) == 1


async def test_readers_do_not_wait_for_writers(connection: Connection, connect: Connect) -> None:
    await new_session(connection, users(1))
    writer = await connect()
    async with writer.transaction():
        await append(writer, [user_json("m1")])
        await connection.execute("set lock_timeout = '5s'")
        assert (await header(connection))["next_sequence"] == 1
        assert len(await connection.fetch("select from chatledger.get_messages('s1')")) == 1
        assert len(await connection.fetch("select from chatledger.list_sessions('u1')")) == 1


# Other isolation levels

WRITES = {
    "append_messages": "select chatledger.append_messages('s1', array['{\"role\": \"user\"}']::jsonb[])",
    "append_messages, same id": """select chatledger.append_messages('s1',
        array['{"message_id": "m1", "role": "user", "content": "hi"}']::jsonb[])""",
    "amend_message": "select chatledger.amend_message('s1', 'm0', '{\"content\": \"x\"}')",
    "add_tool_call": 'select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\')',
    "update_session": "select chatledger.update_session('s1', p_title => 'T')",
    "record_usage": "select chatledger.record_usage('s1', 'use', 1, 1)",
    "truncate_session": "select chatledger.truncate_session('s1', 0)",
    "fork_session": "select chatledger.fork_session('s1', 's2')",
    "delete_session": "select chatledger.delete_session('s1')",
}


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
@pytest.mark.parametrize("write", WRITES)
async def test_collision_in_a_transaction_with_an_older_snapshot_is_40001(
    connection: Connection, connect: Connect, write: str, isolation: Any
) -> None:
    await new_session(connection, users(1))
    transaction = connection.transaction(isolation=isolation)
    await transaction.start()
    await connection.execute("select from chatledger.sessions")  # takes the snapshot
    other = await connect()
    await append(other, [user_json("m1")])
    before = await everything(other)

    with pytest.raises(asyncpg.SerializationError):
        await connection.execute(WRITES[write])

    await transaction.rollback()
    assert await everything(connection) == before


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
@pytest.mark.parametrize("write", WRITES)
async def test_collision_with_one_that_was_waited_for_is_40001(
    connection: Connection, connect: Connect, write: str, isolation: Any
) -> None:
    await new_session(connection, users(1))
    first, second = await connect(), await connect()
    appending = first.transaction()
    await appending.start()
    await append(first, [user_json("m1")])

    writing = second.transaction(isolation=isolation)
    await writing.start()
    waiting = asyncio.create_task(second.execute(WRITES[write]))
    await until_waiting(connection)
    await appending.commit()

    with pytest.raises(asyncpg.SerializationError):
        await waiting


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
@pytest.mark.parametrize(
    "create", ["select chatledger.create_session('s2', 'u1')", "select chatledger.fork_session('s1', 's2')"]
)
async def test_session_that_was_created_since_the_snapshot_is_40001(
    connection: Connection, connect: Connect, create: str, isolation: Any
) -> None:
    await new_session(connection, users(1))
    transaction = connection.transaction(isolation=isolation)
    await transaction.start()
    await connection.execute("select from chatledger.sessions")  # takes the snapshot
    await new_session(await connect(), session_id="s2")

    with pytest.raises(asyncpg.SerializationError):
        await connection.execute(create)

    await transaction.rollback()


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_without_a_collision_every_isolation_level_will_do(connection: Connection, isolation: Any) -> None:
    await new_session(connection, users(1))
    async with connection.transaction(isolation=isolation):
        await append(connection, [user_json("m1")])
        await append(connection, [user_json("m2")])
    assert await places(connection) == [(0, "m0"), (1, "m1"), (2, "m2")]


async def test_g1_append_whose_transaction_is_rolled_back_while_others_wait_leaves_no_gap(
    connection: Connection, connect: Connect
) -> None:
    await new_session(connection)
    first, second = await connect(), await connect()
    appending = first.transaction()
    await appending.start()
    await append(first, users(3, "lost"))
    waiting = asyncio.create_task(append(second, [user_json("kept")]))
    await until_waiting(connection)
    await appending.rollback()

    ((_, sequence, _, _),) = await waiting
    assert sequence == 0
    assert await places(connection) == [(0, "kept")]


async def test_g3_retry_that_overtakes_its_first_try_stores_once(connection: Connection, connect: Connect) -> None:
    """The first try is still in an open transaction when the retry comes."""
    await new_session(connection)
    first, retry = await connect(), await connect()
    appending = first.transaction()
    await appending.start()
    answer = await append(first, users(2))
    waiting = asyncio.create_task(append(retry, users(2)))
    await until_waiting(connection)
    await appending.commit()

    again = await waiting
    assert [tuple(row)[:3] for row in again] == [tuple(row)[:3] for row in answer]
    assert not any(row["appended"] for row in again)
