"""read_session: a session of one moment, and what changed since a version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.properties import examples
from tests.helpers.sql import (
    Json,
    add_call,
    amend,
    append,
    assistant,
    bodies,
    call,
    header,
    new_session,
    refused,
    tool,
    truncate,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

Copy = tuple[Json, dict[int, Json]]


async def read(
    connection: Connection,
    since: Json | None = None,
    last: int | None = None,
    session_id: str = "s1",
) -> tuple[Json, list[Json]]:
    """Header and messages; with an earlier header, what changed since."""
    rows = await connection.fetch(
        "select * from chatledger.read_session($1, null, $2, $3, $4)",
        session_id,
        since["version"] if since else None,
        since["next_sequence"] if since else None,
        last,
    )
    first, *messages = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return json.loads(first["session"]), messages


def places_in(messages: list[Json]) -> list[int]:
    return [message["sequence"] for message in messages]


async def test_first_row_is_the_header_and_then_come_the_messages_in_order(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1"), unknown=None), tool("m2", "c1")])

    found, messages = await read(connection)

    assert (found["session_id"], found["user_id"], found["next_sequence"]) == ("s1", "u1", 3)
    assert [(message["sequence"], message["message_id"], message["role"]) for message in messages] == [
        (0, "m0", "user"),
        (1, "m1", "assistant"),
        (2, "m2", "tool"),
    ]
    assert json.loads(messages[1]["tool_calls"]) == [call("c1")]
    assert json.loads(messages[1]["extra"]) == {"unknown": None}
    assert messages[2]["tool_call_id"] == "c1"


async def test_header_says_all_there_is_to_say_of_a_session(connection: Connection) -> None:
    await new_session(connection)
    assert (await header(connection)).keys() == {
        "session_id",
        "user_id",
        "title",
        "metadata",
        "pinned",
        "status",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "cache_read_tokens",
        "cache_creation_tokens",
        "reasoning_tokens",
        "message_count",
        "next_sequence",
        "version",
        "forked_from",
        "forked_at",
        "created_at",
        "updated_at",
    }


async def test_empty_session_is_a_header_alone(connection: Connection) -> None:
    await new_session(connection)
    _, messages = await read(connection)
    assert messages == []


@pytest.mark.parametrize("session_id", ["unknown", "", None])
async def test_session_that_is_not_there_has_no_row(connection: Connection, session_id: str | None) -> None:
    assert await connection.fetch("select from chatledger.read_session($1)", session_id) == []


async def test_removed_messages_are_left_out(connection: Connection) -> None:
    await new_session(connection, users(3))
    await truncate(connection, 1)
    _, messages = await read(connection)
    assert places_in(messages) == [0]


async def test_last_reads_a_window(connection: Connection) -> None:
    await new_session(connection, users(10))
    found, messages = await read(connection, last=3)
    assert places_in(messages) == [7, 8, 9]
    assert found["message_count"] == 10


async def test_window_reaches_back_to_the_call_of_its_first_result(connection: Connection) -> None:
    calls = [call(f"c{number}") for number in range(20)]
    results = [tool(f"t{number}", f"c{number}") for number in range(20)]
    await new_session(connection, [user_json("m0"), assistant("m1", *calls), *results])
    _, messages = await read(connection, last=3)
    assert places_in(messages)[0] == 1


@pytest.mark.parametrize("last", [0, -1])
async def test_g10_bad_window_is_refused(connection: Connection, last: int) -> None:
    await new_session(connection)
    with refused("CL008", argument="last"):
        await read(connection, last=last)


async def test_g10_version_without_a_sequence_is_refused(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL008", argument="since_version"):
        await connection.execute("select chatledger.read_session('s1', null, 1, null)")


@pytest.mark.parametrize("limit", [0, -1])
async def test_g10_bad_limit_is_refused(connection: Connection, limit: int) -> None:
    await new_session(connection)
    with refused("CL008", argument="limit"):
        await connection.execute("select chatledger.read_session('s1', p_limit => $1)", limit)


async def test_sequence_without_a_version_is_where_the_messages_start(connection: Connection) -> None:
    await new_session(connection, users(5))
    await amend(connection, "m1", {"content": "changed"})
    rows = await connection.fetch("select * from chatledger.read_session('s1', p_since_sequence => 3)")
    assert [row["sequence"] for row in rows] == [None, 3, 4]


# What changed since


async def test_page_after_page_is_every_message_once_and_what_changed_in_between(connection: Connection) -> None:
    """The next page starts at this page's version, after its last message."""
    await new_session(connection, users(7))
    page = "select * from chatledger.read_session('s1', null, $1, $2, p_limit => 3)"

    first = await connection.fetch(page, None, 0)
    await amend(connection, "m1", {"content": "on the page before"})
    await amend(connection, "m4", {"content": "on the page that comes"})
    second = await connection.fetch(page, json.loads(first[0]["session"])["version"], 3)
    await truncate(connection, 5)
    await append(connection, [user_json("m7")])
    third = await connection.fetch(page, json.loads(second[0]["session"])["version"], 6)
    last = await connection.fetch(page, json.loads(third[0]["session"])["version"], 8)

    assert [(row["sequence"], row["removed"]) for row in first[1:]] == [(0, False), (1, False), (2, False)]
    assert [(row["sequence"], row["content"]) for row in second[1:]] == [
        (1, "on the page before"),
        (3, "hi"),
        (4, "on the page that comes"),
        (5, "hi"),
    ]
    assert [(row["sequence"], row["removed"]) for row in third[1:]] == [(5, True), (7, False)]
    assert last[1:] == []


async def test_rest_of_the_pages_is_read_when_nothing_changed_in_between(connection: Connection) -> None:
    await new_session(connection, users(4))
    version = (await header(connection))["version"]
    rows = await connection.fetch("select * from chatledger.read_session('s1', null, $1, 2)", version)
    assert places_in([dict(row) for row in rows[1:]]) == [2, 3]


async def test_nothing_changed_is_a_header_alone(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    found, messages = await read(connection, since=seen)
    assert found == seen | {"usage": []}
    assert messages == []


async def test_new_messages(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    await append(connection, users(2, "n"))

    found, messages = await read(connection, since=seen)

    assert found["version"] == seen["version"] + 1
    assert [(message["sequence"], message["message_id"]) for message in messages] == [(3, "n0"), (4, "n1")]


async def test_earlier_message_that_was_amended(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    await amend(connection, "m1", {"content": "changed"})

    _, (message,) = await read(connection, since=seen)

    assert (message["sequence"], message["content"], message["removed"]) == (1, "changed", False)
    assert message["amended_version"] == seen["version"] + 1


async def test_earlier_messages_that_were_removed(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    await truncate(connection, 1)

    _, messages = await read(connection, since=seen)

    assert [(message["sequence"], message["removed"]) for message in messages] == [(1, True), (2, True)]
    assert "content" not in messages[0]


async def test_message_that_came_and_went_in_between_is_not_mentioned(connection: Connection) -> None:
    await new_session(connection, users(1))
    seen = await header(connection)
    await append(connection, [user_json("gone")])
    await truncate(connection, 1)

    found, messages = await read(connection, since=seen)

    assert messages == []
    assert (found["next_sequence"], found["message_count"]) == (2, 1)


async def test_change_of_the_header_alone(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    await connection.execute("select chatledger.update_session('s1', p_title => 'New')")

    found, messages = await read(connection, since=seen)

    assert found["title"] == "New"
    assert messages == []


async def test_message_amended_twice_comes_once(connection: Connection) -> None:
    await new_session(connection, users(3))
    seen = await header(connection)
    await amend(connection, "m1", {"content": "one"})
    await amend(connection, "m1", {"content": "two"})
    _, (message,) = await read(connection, since=seen)
    assert message["content"] == "two"


# Any history

numbers = st.integers(0, 30)
operations = st.lists(
    st.tuples(st.sampled_from(["append", "amend", "call", "truncate", "title", "usage", "copy"]), numbers),
    min_size=3,
    max_size=14,
)


async def carry_out(connection: Connection, session_id: str, step: int, operation: str, number: int) -> None:
    if operation == "append":
        roles = ("user", "assistant")
        batch = [
            {"message_id": f"m{step}.{i}", "role": roles[(number + i) % 2], "content": "hi"} for i in range(number % 4)
        ]
        await append(connection, batch, session_id=session_id)
    elif operation == "amend":
        stored = await bodies(connection, session_id)
        if stored:
            message_id = stored[number % len(stored)]["message_id"]
            await amend(connection, message_id, {"content": f"amended {step}"}, session_id=session_id)
    elif operation == "call":
        await add_call(connection, call(f"c{number % 5}"), session_id=session_id, message_id=f"call{step}")
    elif operation == "truncate":
        await truncate(connection, number, session_id)
    elif operation == "title":
        await connection.execute("select chatledger.update_session($1, p_title => $2)", session_id, f"{number}")
    elif operation == "usage":
        await connection.execute("select chatledger.record_usage($1, $2, 1, 1)", session_id, f"use{step}")


def renewed(copy: Copy, news: tuple[Json, list[Json]]) -> Copy:
    """What a reader makes of an old copy and of what changed since."""
    messages = dict(copy[1])
    for message in news[1]:
        if message["removed"]:
            del messages[message["sequence"]]
        else:
            messages[message["sequence"]] = message
    return news[0] | {"usage": copy[0]["usage"] + news[0]["usage"]}, messages


@examples
@given(history=operations)
async def test_any_old_copy_and_what_changed_since_make_a_fresh_read(
    connection: Connection, history: list[tuple[str, int]]
) -> None:
    session_id = uuid4().hex
    await new_session(connection, session_id=session_id)

    async def copy(since: Json | None = None) -> tuple[Json, list[Json]]:
        return await read(connection, since, session_id=session_id)

    copies: list[Copy] = [((await copy())[0], {})]
    for step, (operation, number) in enumerate(history):
        await carry_out(connection, session_id, step, operation, number)
        if operation == "copy":
            found, messages = await copy()
            copies.append((found, {message["sequence"]: message for message in messages}))

    fresh_header, fresh = await copy()
    for old in copies:
        found, by_sequence = renewed(old, await copy(since=old[0]))
        assert found == fresh_header
        assert [by_sequence[sequence] for sequence in sorted(by_sequence)] == fresh
    assert await connection.fetch("select * from chatledger.verify_session($1)", session_id) == []


async def test_g6_all_rows_are_of_one_moment(connection: Connection, connect: Any) -> None:
    """The header counts exactly the messages that come with it, while others write."""
    await new_session(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        before = await read(connection)
        await append(await connect(), users(3))
        assert await read(connection) == before
    found, messages = await read(connection)
    assert found["message_count"] == len(messages) == 3
