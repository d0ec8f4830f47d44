"""verify_session: each kind of damage is reported. The tests damage stored rows as superuser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.sql import add_call, amend, append, assistant, call, new_session, refused, tool, truncate, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def healthy_session(connection: Connection, session_id: str = "s1") -> None:
    """Six messages with a history: 1 was amended, 3 and 4 were removed."""
    first = [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1"), user_json("m3"), assistant("m4")]
    await new_session(connection, first, session_id=session_id)
    await add_call(connection, call("c2"), session_id=session_id)
    await truncate(connection, 3, session_id)
    await amend(connection, "m1", {"content": "amended"}, session_id=session_id)
    await append(connection, [user_json("m5")], session_id=session_id)


async def problems(connection: Connection, session_id: str | None = "s1") -> list[tuple[str, str, int | None]]:
    rows = await connection.fetch("select * from chatledger.verify_session($1)", session_id)
    assert all(row["problem"] for row in rows)
    return [(row["session_id"], row["guarantee"], row["sequence"]) for row in rows]


async def test_healthy_session_has_no_problem(connection: Connection) -> None:
    await healthy_session(connection)
    assert await problems(connection) == []


async def test_neither_have_empty_deleted_and_forked_ones(connection: Connection) -> None:
    await healthy_session(connection)
    await connection.execute("select chatledger.fork_session('s1', 'fork')")
    await new_session(connection, session_id="empty")
    await new_session(connection, [user_json("m0")], session_id="deleted")
    await connection.execute("select chatledger.delete_session('deleted')")
    assert await problems(connection, None) == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("delete from chatledger.messages where sequence = 0", ("s1", "G1", None)),
        ("delete from chatledger.messages where sequence = 2", ("s1", "G1", None)),
        ("delete from chatledger.messages", ("s1", "G1", None)),
        ("update chatledger.messages set sequence = 9 where sequence = 5", ("s1", "G1", None)),
        ("update chatledger.messages set sequence = -1 where sequence = 0", ("s1", "G1", None)),
        ("update chatledger.sessions set next_sequence = 7", ("s1", "G1", None)),
        ("update chatledger.sessions set removed_count = 1", ("s1", "G1", None)),
        ("update chatledger.messages set removed = false where sequence = 4", ("s1", "G1", None)),
        (
            "update chatledger.messages set created_at = created_at - interval '1 second' where sequence = 2",
            ("s1", "G2", 2),
        ),
        (
            "update chatledger.messages set created_at = created_at + interval '1 second' where sequence = 4",
            ("s1", "G2", 5),
        ),
        ("update chatledger.messages set amended_version = 99 where sequence = 1", ("s1", "G3", 1)),
        ("update chatledger.messages set amended_version = null where sequence = 1", ("s1", "G3", 1)),
        ("update chatledger.messages set original_hash = null where sequence = 1", ("s1", "G3", 1)),
        ("update chatledger.messages set original_hash = null where sequence = 3", ("s1", "G3", 3)),
        ("update chatledger.messages set original_hash = '' where sequence = 0", ("s1", "G3", 0)),
        ("update chatledger.messages set role = 'robot' where sequence = 0", ("s1", "G10", 0)),
        ("update chatledger.messages set tool_call_id = null where sequence = 2", ("s1", "G10", 2)),
        ("update chatledger.messages set tool_calls = '[1]' where sequence = 1", ("s1", "G10", 1)),
        ("update chatledger.messages set metadata = '[]' where sequence = 0", ("s1", "G10", 0)),
        ("update chatledger.messages set duration_ms = -1 where sequence = 0", ("s1", "G10", 0)),
    ],
)
async def test_damage_is_reported(connection: Connection, damage: str, found: tuple[str, str, int | None]) -> None:
    await healthy_session(connection)
    await connection.execute(damage)
    assert found in await problems(connection)
    assert found in await problems(connection, None)


async def test_damage_is_told_apart_by_session(connection: Connection) -> None:
    for session_id in ("s1", "s2", "s3"):
        await healthy_session(connection, session_id)
    await connection.execute("update chatledger.messages set role = 'robot' where session_id = 's2' and sequence = 0")

    assert await problems(connection, None) == [("s2", "G10", 0)]
    assert await problems(connection, "s1") == []


async def test_times_of_different_sessions_are_not_compared(connection: Connection) -> None:
    await new_session(connection, [user_json("m0")], session_id="s2")
    await new_session(connection, [user_json("m0")], session_id="s1")
    assert await problems(connection, None) == []


@pytest.mark.parametrize("session_id", ["unknown", "deleted"])
async def test_g10_unknown_session_is_refused(connection: Connection, session_id: str) -> None:
    await new_session(connection, session_id="deleted")
    await connection.execute("select chatledger.delete_session('deleted')")
    with refused("CL001", session_id=session_id):
        await problems(connection, session_id)
