"""fork_session, as SQL callers see it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import (
    amend,
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


async def fork(connection: Connection, arguments: str = "") -> Any:
    return await one(connection, f"select * from chatledger.fork_session('s1', 's2' {arguments})")


async def test_fork_has_a_copy_of_the_messages(connection: Connection) -> None:
    messages = [
        user_json("m0", name=None),
        assistant("m1", call("c1"), x=1),
        tool("m2", "c1", metadata={}, duration_ms=1),
    ]
    await new_session(connection, messages)
    original = await connection.fetch("select created_at from chatledger.messages order by sequence")

    row = await fork(connection)

    assert (row["session_id"], row["user_id"], row["forked_from"], row["forked_at"]) == ("s2", "u1", "s1", None)
    assert (row["next_sequence"], row["message_count"]) == (3, 3)
    assert await bodies(connection, "s2") == messages
    copied = "select created_at from chatledger.messages where session_id = 's2' order by sequence"
    assert await connection.fetch(copied) == original


async def test_fork_has_the_messages_up_to_and_including_a_sequence(connection: Connection) -> None:
    await new_session(connection, users(5))
    row = await fork(connection, ", 2")
    assert row["forked_at"] == 2
    assert await bodies(connection, "s2") == users(3)


async def test_g1_fork_of_a_truncated_session_is_numbered_anew(connection: Connection) -> None:
    await new_session(connection, users(3))
    await truncate(connection, 1)
    await append(connection, users(2, "n"))

    row = await fork(connection)

    assert await places(connection, "s2") == [(0, "m0"), (1, "n0"), (2, "n1")]
    assert (row["next_sequence"], row["message_count"]) == (3, 3)
    assert await connection.fetch("select * from chatledger.verify_session('s2')") == []


async def test_fork_has_amended_messages_as_they_are_now(connection: Connection) -> None:
    await new_session(connection, users(2))
    await amend(connection, "m0", {"content": "amended"})
    await fork(connection)
    assert await bodies(connection, "s2") == [user_json("m0", "amended"), user_json("m1")]
    assert await connection.fetch("select * from chatledger.verify_session('s2')") == []


async def test_fork_keeps_title_metadata_and_status_but_not_usage_and_pin(connection: Connection) -> None:
    await new_session(connection, users(1))
    await connection.execute(
        "select chatledger.update_session('s1', p_title => 'T', p_metadata => '{\"a\": 1}', p_status => 'x', "
        "p_pinned => true)"
    )
    await connection.execute("select chatledger.record_usage('s1', 'use', 1, 1)")

    await fork(connection)

    found = await header(connection, "s2")
    assert (found["title"], found["metadata"], found["status"]) == ("T", {"a": 1}, "x")
    assert (found["total_tokens"], found["pinned"]) == (0, False)


async def test_fork_may_have_a_title_of_its_own(connection: Connection) -> None:
    await connection.execute("select chatledger.create_session('s1', p_title => 'T')")
    assert (await fork(connection, ", p_title => 'Other'"))["title"] == "Other"


async def test_answer_is_the_header_that_readers_see(connection: Connection) -> None:
    await new_session(connection, users(2))
    answer = await connection.fetchval("select to_jsonb(chatledger.fork_session('s1', 's2'))")
    assert json.loads(answer) == await header(connection, "s2")


async def test_fork_and_original_go_on_apart(connection: Connection) -> None:
    await new_session(connection, users(2))
    await fork(connection)

    await append(connection, [user_json("original")])
    await append(connection, [user_json("fork")], session_id="s2")
    await amend(connection, "m0", {"content": "changed"})

    assert await bodies(connection) == [user_json("m0", "changed"), user_json("m1"), user_json("original")]
    assert await bodies(connection, "s2") == [*users(2), user_json("fork")]


async def test_original_stays_as_it_is(connection: Connection) -> None:
    await new_session(connection, users(2))
    before = await everything(connection)
    await fork(connection)
    assert set(before) < set(await everything(connection))


async def test_g3_same_fork_again_returns_it_as_it_is(connection: Connection) -> None:
    await new_session(connection, users(2))
    await fork(connection, ", 1")
    await append(connection, [user_json("later")], session_id="s2")
    before = await everything(connection)

    row = await fork(connection, ", 1, p_title => 'Other'")

    assert (row["next_sequence"], row["title"]) == (3, None)
    assert await everything(connection) == before


@pytest.mark.parametrize("at", ["0", "null"])
async def test_g10_same_id_for_another_fork_is_refused(connection: Connection, at: str) -> None:
    await new_session(connection, users(2))
    await fork(connection, ", 1")
    before = await everything(connection)

    with refused("CL010", session_id="s2"):
        await fork(connection, f", {at}")

    assert await everything(connection) == before


async def test_g10_id_of_a_session_that_is_no_fork_is_refused(connection: Connection) -> None:
    await new_session(connection, users(2))
    await new_session(connection, session_id="s2")
    with refused("CL010", session_id="s2"):
        await fork(connection)


async def test_g10_session_is_no_fork_of_itself(connection: Connection) -> None:
    await new_session(connection, users(2))
    with refused("CL010", session_id="s1"):
        await connection.execute("select chatledger.fork_session('s1', 's1')")


async def test_g11_id_of_a_deleted_session_is_not_used_again(connection: Connection) -> None:
    await new_session(connection, users(2))
    await fork(connection)
    await connection.execute("select chatledger.delete_session('s2')")
    with refused("CL010", session_id="s2"):
        await fork(connection)


@pytest.mark.parametrize("new_id", ["", "x" * 256, None], ids=["empty", "256 characters", "null"])
async def test_g10_bad_new_id_is_refused(connection: Connection, new_id: str | None) -> None:
    await new_session(connection)
    with refused("CL008", argument="new_session_id"):
        await connection.execute("select chatledger.fork_session('s1', $1)", new_id)


async def test_g10_bad_sequence_is_refused(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL008", argument="at_sequence"):
        await fork(connection, ", -1")


async def test_g10_unknown_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await fork(connection)
    assert await everything(connection) == []
