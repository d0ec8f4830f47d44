"""get_messages: pages that keep a tool call and its results together."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.properties import examples
from tests.helpers.sql import (
    Json,
    assistant,
    call,
    new_session,
    places,
    refused,
    tool,
    truncate,
    user_json,
    users,
)

if TYPE_CHECKING:
    import asyncpg

    from tests.helpers.sql import Connection


async def page(connection: Connection, arguments: str = "", session_id: str = "s1") -> list[int]:
    """The sequences on a page."""
    rows = await connection.fetch(f"select sequence from chatledger.get_messages($1 {arguments})", session_id)
    return [row["sequence"] for row in rows]


def group(name: str, results: int) -> list[Json]:
    """An assistant message and the results of its calls."""
    calls = [call(f"{name}.{number}") for number in range(results)]
    return [
        assistant(name, *calls),
        *(tool(f"{name}-{number}", f"{name}.{number}") for number in range(results)),
    ]


async def test_newest_page_first(connection: Connection) -> None:
    await new_session(connection, users(10))
    assert await page(connection, ", p_limit => 3") == [7, 8, 9]
    assert await page(connection, ", p_limit => 3, p_before => 7") == [4, 5, 6]
    assert await page(connection, ", p_limit => 3, p_before => 1") == [0]
    assert await page(connection, ", p_limit => 3, p_before => 0") == []


async def test_forward_from_a_sequence(connection: Connection) -> None:
    await new_session(connection, users(10))
    assert await page(connection, ", p_limit => 4, p_after => -1") == [0, 1, 2, 3]
    assert await page(connection, ", p_limit => 4, p_after => 7") == [8, 9]
    assert await page(connection, ", p_limit => 4, p_after => 9") == []


async def test_between_two_sequences(connection: Connection) -> None:
    await new_session(connection, users(10))
    assert await page(connection, ", p_after => 2, p_before => 6") == [3, 4, 5]
    assert await page(connection, ", p_after => 2, p_before => 6, p_limit => 2") == [3, 4]


async def test_hundred_unless_told(connection: Connection) -> None:
    await new_session(connection, users(120))
    assert await page(connection) == [*range(20, 120)]
    assert await page(connection, ", p_limit => null") == [*range(120)]
    assert await page(connection, ", p_limit => null, p_after => 100") == [*range(101, 120)]


async def test_empty_session_is_an_empty_page(connection: Connection) -> None:
    await new_session(connection)
    assert await page(connection) == []
    assert await page(connection, ", p_after => -1") == []


async def test_removed_messages_are_left_out_and_not_counted(connection: Connection) -> None:
    await new_session(connection, users(6))
    await truncate(connection, 3)
    await connection.execute("select chatledger.append_messages('s1', array['{\"role\": \"user\"}']::jsonb[])")
    assert await page(connection, ", p_limit => 3") == [1, 2, 6]
    assert await page(connection, ", p_limit => 3, p_after => 1") == [2, 6]


async def test_page_that_would_start_on_a_result_reaches_back_to_the_call(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), *group("a", 150), user_json("m1")])
    assert await page(connection, ", p_limit => 10") == [*range(1, 153)]


async def test_page_that_would_end_among_results_goes_on_to_the_last(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), *group("a", 150), user_json("m1")])
    assert await page(connection, ", p_limit => 10, p_after => -1") == [*range(152)]
    assert await page(connection, ", p_limit => 10, p_after => 151") == [152]


async def test_results_that_came_late_reach_back_past_other_messages(connection: Connection) -> None:
    await new_session(
        connection, [assistant("a", call("c1")), *users(5), assistant("b"), tool("t", "c1"), user_json("m9")]
    )
    assert await page(connection, ", p_limit => 2") == [*range(9)]


async def test_result_belongs_to_the_last_call_of_that_id(connection: Connection) -> None:
    await new_session(
        connection, [assistant("a", call("c1")), user_json("m0"), assistant("b", call("c1")), tool("t", "c1")]
    )
    assert await page(connection, ", p_limit => 1") == [2, 3]


async def test_result_without_a_call_starts_a_page_where_it_is(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), tool("t", "c1"), user_json("m1")])
    assert await page(connection, ", p_limit => 2") == [1, 2]


@pytest.mark.parametrize("limit", [0, -1])
async def test_g10_bad_limit_is_refused(connection: Connection, limit: int) -> None:
    await new_session(connection)
    with refused("CL008", argument="limit"):
        await page(connection, f", p_limit => {limit}")


@pytest.mark.parametrize("session_id", ["", "x" * 256])
async def test_g10_id_that_no_session_can_have_is_refused(connection: Connection, session_id: str) -> None:
    with refused("CL008", argument="session_id"):
        await page(connection, session_id=session_id)


async def test_g10_unknown_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await page(connection)


# Any history


@st.composite
def histories(draw: st.DrawFn) -> list[Json]:
    """Turns with calls whose results come at once, late, among other messages, or without a call."""
    messages: list[Json] = []
    waiting: list[str] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(["user", "calls", "results", "orphan"]), max_size=20))):
        if kind == "user":
            messages.append(user_json(f"u{number}"))
        elif kind == "calls":
            ids = [f"c{number}.{i}" for i in range(draw(st.integers(0, 4)))]
            messages.append(assistant(f"a{number}", *map(call, ids)))
            waiting += ids
        elif kind == "results":
            ready = draw(st.integers(0, len(waiting)))
            messages += [tool(f"r{number}.{i}", waiting[i]) for i in range(ready)]
            waiting = waiting[ready:]
        else:
            messages.append(tool(f"o{number}", "nobody's"))
    return messages


async def first_and_last(connection: Connection, session_id: str, arguments: str) -> list[asyncpg.Record]:
    return await connection.fetch(
        f"select sequence, role, tool_call_id from chatledger.get_messages($1, {arguments})", session_id
    )


@examples
@given(history=histories(), limit=st.integers(1, 5))
async def test_forward_pages_give_every_message_once_and_start_outside_of_tool_groups(
    connection: Connection, history: list[Json], limit: int
) -> None:
    session_id = uuid4().hex
    await new_session(connection, history, session_id=session_id)

    seen: list[int] = []
    while rows := await first_and_last(
        connection, session_id, f"p_after => {seen[-1] if seen else -1}, p_limit => {limit}"
    ):
        assert not seen or rows[0]["role"] != "tool"
        assert len(rows) >= min(limit, len(history) - len(seen))
        seen += [row["sequence"] for row in rows]

    assert seen == [sequence for sequence, _ in await places(connection, session_id)] == [*range(len(history))]


@examples
@given(history=histories(), limit=st.integers(1, 5))
async def test_backward_pages_give_every_message_once_and_never_start_on_a_result_that_has_a_call(
    connection: Connection, history: list[Json], limit: int
) -> None:
    session_id = uuid4().hex
    await new_session(connection, history, session_id=session_id)

    seen: list[int] = []
    while rows := await first_and_last(
        connection, session_id, f"p_before => {seen[0] if seen else 'null'}, p_limit => {limit}"
    ):
        assert rows[0]["tool_call_id"] in (None, "nobody's")
        assert len(rows) >= min(limit, len(history) - len(seen))
        seen = [row["sequence"] for row in rows] + seen

    assert seen == [*range(len(history))]
