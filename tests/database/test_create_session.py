"""create_session: G3, G8, G10, G11 as SQL callers see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import append, everything, header, new_session, one, refused, users

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def test_new_session_is_empty(connection: Connection) -> None:
    row = await one(
        connection, "select * from chatledger.create_session('s1', 'u1', 'Title', $1::text::jsonb, 'x')", {}
    )

    assert (row["session_id"], row["user_id"], row["title"], row["status"]) == ("s1", "u1", "Title", "x")
    assert (row["version"], row["next_sequence"], row["message_count"], row["total_tokens"]) == (1, 0, 0, 0)
    assert (row["pinned"], row["forked_from"], row["forked_at"]) == (False, None, None)
    assert row["created_at"] == row["updated_at"]


async def test_only_the_id_is_needed(connection: Connection) -> None:
    row = await one(connection, "select * from chatledger.create_session('s1')")
    assert (row["user_id"], row["title"], row["metadata"], row["status"]) == (None, None, "{}", "active")


async def test_answer_is_the_header_that_readers_see(connection: Connection) -> None:
    answer = await connection.fetchval("select to_jsonb(chatledger.create_session('s1', 'u1', 'Title', '{\"a\": 1}'))")
    assert json.loads(answer) == await header(connection)


async def test_g3_same_id_and_owner_again_returns_what_is_there(connection: Connection) -> None:
    await new_session(connection, users(2))
    await connection.execute("select chatledger.update_session('s1', p_title => 'Kept', p_metadata => '{\"a\": 1}')")
    before = await everything(connection)

    row = await one(connection, "select * from chatledger.create_session('s1', 'u1', 'Other', '{\"b\": 2}', 'other')")

    assert (row["title"], row["metadata"], row["status"], row["next_sequence"]) == ("Kept", '{"a": 1}', "active", 2)
    assert await everything(connection) == before


async def test_g3_session_without_an_owner_again_returns_what_is_there(connection: Connection) -> None:
    await new_session(connection, users(1), user_id=None)
    row = await one(connection, "select * from chatledger.create_session('s1')")
    assert row["next_sequence"] == 1


@pytest.mark.parametrize("asked_by", ["u2", None])
async def test_g8_id_of_anothers_session_is_not_found(connection: Connection, asked_by: str | None) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL001", session_id="s1"):
        await connection.execute("select chatledger.create_session('s1', $1)", asked_by)

    assert await everything(connection) == before


async def test_g11_id_of_a_deleted_session_is_not_used_again(connection: Connection) -> None:
    await new_session(connection)
    await connection.execute("select chatledger.delete_session('s1')")
    with refused("CL001", session_id="s1"):
        await connection.execute("select chatledger.create_session('s1', 'u1')")


@pytest.mark.parametrize("session_id", ["", "x" * 256, None], ids=["empty", "256 characters", "null"])
async def test_g10_bad_session_id_is_refused(connection: Connection, session_id: str | None) -> None:
    with refused("CL008", argument="session_id"):
        await connection.execute("select chatledger.create_session($1, 'u1')", session_id)
    assert await everything(connection) == []


@pytest.mark.parametrize("user_id", ["", "x" * 256], ids=["empty", "256 characters"])
async def test_g10_bad_user_id_is_refused(connection: Connection, user_id: str) -> None:
    with refused("CL008", argument="user_id"):
        await connection.execute("select chatledger.create_session('s1', $1)", user_id)
    assert await everything(connection) == []


@pytest.mark.parametrize("metadata", [None, 1, "text", [], [{}]], ids=str)
async def test_g10_metadata_that_is_not_an_object_is_refused(connection: Connection, metadata: Any) -> None:
    with refused("CL008", argument="metadata"):
        await connection.execute(
            "select chatledger.create_session('s1', p_metadata => $1::text::jsonb)", json.dumps(metadata)
        )
    assert await everything(connection) == []


async def test_created_session_takes_messages(connection: Connection) -> None:
    await connection.execute("select chatledger.create_session('s1', 'u1')")
    assert len(await append(connection, users(1), user_id="u1")) == 1
