"""truncate_session: G1, G3, G4 as SQL callers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import (
    add_call,
    append,
    assistant,
    bodies,
    call,
    everything,
    header,
    new_session,
    one,
    places,
    refused,
    tool,
    truncate,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def test_removes_the_messages_from_a_sequence_on(connection: Connection) -> None:
    await new_session(connection, users(5))

    row = await truncate(connection, 3)

    assert tuple(row) == (2, 5, 3)
    assert await bodies(connection) == users(3)
    assert (await header(connection))["message_count"] == 3


async def test_g1_number_of_a_removed_message_is_not_used_again(connection: Connection) -> None:
    await new_session(connection, users(5))
    await truncate(connection, 3)

    await append(connection, [user_json("again")])

    assert await places(connection) == [(0, "m0"), (1, "m1"), (2, "m2"), (5, "again")]
    assert (await header(connection))["message_count"] == 4


async def test_what_was_said_is_erased(connection: Connection) -> None:
    await new_session(
        connection,
        [
            user_json("m0", "a secret", name="secret", metadata={"secret": 1}, secret="secret", duration_ms=1),
            assistant("m1", call("c1", "secret"), refusal="secret", function_call={"name": "secret"}),
            tool("m2", "c1", content=[{"type": "text", "text": "secret"}]),
        ],
    )
    await truncate(connection, 0)
    assert "secret" not in str(await everything(connection))


async def test_truncating_again_changes_nothing(connection: Connection) -> None:
    await new_session(connection, users(5))
    await truncate(connection, 3)
    before = await everything(connection)

    assert tuple(await truncate(connection, 3)) == (0, 5, 3)
    assert await everything(connection) == before


async def test_truncating_further_counts_only_what_was_left(connection: Connection) -> None:
    await new_session(connection, users(5))
    await truncate(connection, 3)

    assert tuple(await truncate(connection, 1)) == (2, 5, 4)
    assert (await header(connection))["message_count"] == 1


@pytest.mark.parametrize("from_sequence", [5, 2**31 - 1])
async def test_past_the_end_removes_nothing(connection: Connection, from_sequence: int) -> None:
    await new_session(connection, users(5))
    assert tuple(await truncate(connection, from_sequence)) == (0, 5, 2)


async def test_expected_sequence_that_is_right_truncates(connection: Connection) -> None:
    await new_session(connection, users(5))
    row = await one(connection, "select * from chatledger.truncate_session('s1', 3, p_expected_sequence => 5)")
    assert row["removed"] == 2


async def test_g4_expected_sequence_that_is_wrong_is_refused(connection: Connection) -> None:
    await new_session(connection, users(5))
    before = await everything(connection)

    with refused("CL002", session_id="s1", expected_sequence=4, next_sequence=5, version=2):
        await one(connection, "select * from chatledger.truncate_session('s1', 3, p_expected_sequence => 4)")

    assert await everything(connection) == before


@pytest.mark.parametrize("from_sequence", [-1, None])
async def test_g10_bad_sequence_is_refused(connection: Connection, from_sequence: int | None) -> None:
    await new_session(connection, users(5))
    with refused("CL008", argument="from_sequence"):
        await connection.execute("select chatledger.truncate_session('s1', $1)", from_sequence)
    assert len(await places(connection)) == 5


async def test_g7_stale_fence_is_refused(connection: Connection) -> None:
    await new_session(connection, users(1))
    with refused("CL005"):
        await connection.execute("select chatledger.truncate_session('s1', 0, p_fence => 1)")
    assert await bodies(connection) == users(1)


async def test_stored_data_is_in_order_after_appends_amendments_and_truncations(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1")])
    await add_call(connection, call("c1"))
    await append(connection, [tool("m2", "c1"), user_json("m3")])
    await truncate(connection, 2)
    await append(connection, [user_json("m4")])
    await truncate(connection, 0)
    assert await connection.fetch("select * from chatledger.verify_session('s1')") == []
