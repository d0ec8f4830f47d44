"""record_usage: G3, G4, G10 as SQL callers see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import everything, header, new_session, one, refused

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def record(connection: Connection, usage_id: str | None, *tokens: int | None) -> Any:
    given = ", ".join("null" if count is None else str(count) for count in tokens)
    return await one(connection, f"select * from chatledger.record_usage('s1', $1, {given})", usage_id)


def totals(row: Any) -> tuple[int, int, int]:
    return row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]


async def test_g4_usage_adds_up(connection: Connection) -> None:
    await new_session(connection)
    await record(connection, "a", 100, 20)
    row = await record(connection, "b", 3, 4)
    assert totals(row) == (103, 24, 127)
    assert row["version"] == 3


async def test_total_may_be_given(connection: Connection) -> None:
    await new_session(connection)
    assert totals(await record(connection, "a", 100, 20, 150)) == (100, 20, 150)


async def test_answer_is_the_header_that_readers_see(connection: Connection) -> None:
    await new_session(connection)
    answer = await connection.fetchval("select to_jsonb(chatledger.record_usage('s1', 'a', 1, 2))")
    assert json.loads(answer) == await header(connection)


async def test_g3_same_id_again_adds_nothing(connection: Connection) -> None:
    await new_session(connection)
    await record(connection, "a", 100, 20)
    before = await everything(connection)

    assert totals(await record(connection, "a", 100, 20)) == (100, 20, 120)
    assert await everything(connection) == before


@pytest.mark.parametrize("tokens", [(101, 20), (100, 21), (100, 20, 121)])
async def test_g3_same_id_with_other_numbers_is_refused(connection: Connection, tokens: tuple[int, ...]) -> None:
    await new_session(connection)
    await record(connection, "a", 100, 20)
    before = await everything(connection)

    with refused("CL011", session_id="s1", usage_id="a"):
        await record(connection, "a", *tokens)

    assert await everything(connection) == before


async def test_same_id_may_be_recorded_in_two_sessions(connection: Connection) -> None:
    await new_session(connection)
    await new_session(connection, session_id="s2")
    await record(connection, "a", 1, 1)
    row = await one(connection, "select * from chatledger.record_usage('s2', 'a', 2, 2)")
    assert totals(row) == (2, 2, 4)


@pytest.mark.parametrize("usage_id", ["", "x" * 256, None], ids=["empty", "256 characters", "null"])
async def test_g10_bad_id_is_refused(connection: Connection, usage_id: str | None) -> None:
    await new_session(connection)
    before = await everything(connection)

    with refused("CL008", argument="usage_id"):
        await record(connection, usage_id, 1, 1)

    assert await everything(connection) == before


@pytest.mark.parametrize(
    "tokens",
    [
        (None, 1),
        (1, None),
        (-1, 1),
        (1, -1),
        (1, 1, -1),
        (10**12 + 1, 0),
        (0, 10**12 + 1),
        (0, 0, 10**12 + 1),
        (10**12, 1),
        (2**63 - 1, 2**63 - 1),
    ],
    ids=str,
)
async def test_g10_bad_numbers_are_refused(connection: Connection, tokens: tuple[int | None, ...]) -> None:
    await new_session(connection)
    before = await everything(connection)

    with refused("CL008", argument="tokens"):
        await record(connection, "a", *tokens)

    assert await everything(connection) == before


async def test_g10_unknown_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await record(connection, "a", 1, 1)
    assert await everything(connection) == []
