"""save_session: what one copy changed, whole, and nothing of what others changed undone (G3, G4, G10, G11)."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import (
    amend,
    assistant,
    bodies,
    call,
    everything,
    header,
    new_session,
    places,
    refused,
    user_json,
)

if TYPE_CHECKING:
    import asyncpg

    from tests.helpers.sql import Connect, Connection, Json


async def save(
    connection: Connection,
    read_version: int | None = 1,
    *,
    head: Json | None = None,
    messages: list[Any] | None = None,
    amendments: list[Json] | None = None,
    usage: list[Json] | None = None,
    user_id: str | None = "u1",
    fence: int | None = None,
) -> list[asyncpg.Record]:
    return await connection.fetch(
        "select * from chatledger.save_session('s1', $1, $2, $3::text::jsonb, $4::text[]::jsonb[],"
        " $5::text[]::jsonb[], $6::text[]::jsonb[], $7)",
        user_id,
        read_version,
        json.dumps(head or {}),
        [json.dumps(message) for message in messages or []],
        [json.dumps(amendment) for amendment in amendments or []],
        [json.dumps(entry) for entry in usage or []],
        fence,
    )


def tokens(usage_id: str, count: int) -> Json:
    return {"usage_id": usage_id, "prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}


async def test_first_save_creates_the_session(connection: Connection) -> None:
    first, message = await save(connection, None, head={"title": {"to": "T"}}, messages=[user_json("m0")])
    session = json.loads(first["session"])
    assert (session["user_id"], session["title"], session["message_count"]) == ("u1", "T", 1)
    assert first["version_before"] == 1
    assert (message["message_id"], message["sequence"]) == ("m0", 0)
    assert message["created_at"] == datetime.fromisoformat(session["updated_at"])  # G2


async def test_g3_the_same_save_again_changes_nothing(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", "draft"), assistant("m1")])
    whole: dict[str, Any] = {
        "head": {"title": {"to": "T"}, "pinned": {"from": False, "to": True}, "metadata": {"a": {"to": 1}}},
        "messages": [user_json("m2")],
        "amendments": [
            {"message_id": "m0", "fields": {"content": {"from": "draft", "to": "final"}}},
            {"message_id": "m1", "add_tool_calls": [call("c1")], "metadata": {"k": {"to": 1}}},
        ],
        "usage": [tokens("use", 3)],
    }
    first = await save(connection, 2, **whole)
    before = await everything(connection)

    again = await save(connection, 2, **whole)

    assert await everything(connection) == before
    assert json.loads(again[0]["session"]) == json.loads(first[0]["session"])


async def test_twenty_at_once_save_the_same_once(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    callers = [await connect() for _ in range(20)]
    answers = await asyncio.gather(
        *(save(caller, 1, messages=[user_json("m0"), user_json("m1")], usage=[tokens("use", 3)]) for caller in callers)
    )
    assert {tuple(row["sequence"] for row in answer[1:]) for answer in answers} == {(0, 1)}
    assert (await header(connection))["total_tokens"] == 3


@pytest.mark.parametrize(
    ("field", "before", "theirs", "mine"),
    [("title", None, "theirs", "mine"), ("status", "active", "theirs", "mine")],
)
async def test_g4_what_somebody_changed_since_in_the_header_stays(
    connection: Connection, field: str, before: str | None, theirs: str, mine: str
) -> None:
    await new_session(connection)
    await save(connection, 1, head={field: {"from": before, "to": theirs}})
    first, *_ = await save(connection, 1, head={field: {"from": before, "to": mine}})
    assert json.loads(first["session"])[field] == theirs


async def test_g4_metadata_is_compared_key_by_key(connection: Connection) -> None:
    await connection.execute("""select chatledger.create_session('s1', 'u1', null, '{"a": 1, "b": 1, "c": null}')""")
    await save(connection, 1, head={"metadata": {"a": {"from": 1, "to": 2}}})
    head = {"metadata": {"a": {"from": 1, "to": 3}, "b": {"from": 1}, "c": {"from": None, "to": 4}, "d": {"to": [5]}}}
    await save(connection, 1, head=head)
    assert (await header(connection))["metadata"] == {"a": 2, "c": 4, "d": [5]}


async def test_an_end_that_is_missing_takes_the_title_away(connection: Connection) -> None:
    await new_session(connection)
    await save(connection, 1, head={"title": {"to": "T"}})
    await save(connection, 2, head={"title": {"from": "T"}})
    assert (await header(connection))["title"] is None

    # So does an empty one.
    await save(connection, 3, head={"title": {"from": "", "to": "T"}})
    await save(connection, 4, head={"title": {"from": "T", "to": ""}})
    assert (await header(connection))["title"] is None


async def test_g4_a_field_that_somebody_changed_since_is_refused_and_nothing_is_stored(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", "draft"), user_json("m1", "draft")])
    await amend(connection, "m0", {"content": "theirs"})
    before = await everything(connection)
    with refused("CL004", message_id="m0", field="content", expected_version=2, amended_version=3):
        await save(
            connection,
            2,
            head={"title": {"to": "T"}},
            messages=[user_json("m2")],
            amendments=[
                {"message_id": "m1", "fields": {"content": {"from": "draft", "to": "mine"}}},
                {"message_id": "m0", "fields": {"content": {"from": "draft", "to": "mine"}}},
            ],
            usage=[tokens("use", 3)],
        )
    assert await everything(connection) == before


async def test_g4_so_is_a_key_of_a_messages_metadata(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", metadata={"k": 1})])
    await amend(connection, "m0", {"metadata": {"k": 2}})
    with refused("CL004", field="metadata.k"):
        await save(connection, 2, amendments=[{"message_id": "m0", "metadata": {"k": {"from": 1, "to": 3}}}])


async def test_a_null_is_not_the_same_as_nothing(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", x=1)])
    to_null = {"to": None}
    amendment = {"message_id": "m0", "fields": {"x": {"from": 1} | to_null}, "metadata": {"k": to_null}}
    await save(connection, 2, head={"metadata": {"k": to_null, "gone": {"to": 1}}}, amendments=[amendment])
    assert (await header(connection))["metadata"] == {"k": None, "gone": 1}
    [message] = await bodies(connection)
    assert (message["x"], message["metadata"]) == (None, {"k": None})

    removed = {"from": None}
    amendment = {"message_id": "m0", "fields": {"x": removed}, "metadata": {"k": removed}}
    await save(connection, 2, head={"metadata": {"k": removed, "gone": {"from": 1}}}, amendments=[amendment])
    assert (await header(connection))["metadata"] == {}
    [message] = await bodies(connection)
    assert ("x" in message, message["metadata"]) == (False, {})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.33333333333333333333", "0.3333333333333333", True),
        ("0.1", "0.10000000000000002", False),
        ('{"a": [1, 0.33333333333333333333]}', '{"a": [1, 0.3333333333333333]}', True),
        ('{"a": [1, 0.33333333333333333333]}', '{"a": [2, 0.3333333333333333]}', False),
        ('{"a": 1, "b": 0.33333333333333333333}', '{"b": 0.3333333333333333}', False),
        ("[0.33333333333333333333]", "[0.3333333333333333, 1]", False),
        ("1e400", "1e401", False),
        ("1e-400", "0", False),
        ("1", "true", False),
        ("null", None, False),
        (None, None, True),
    ],
)
async def test_numbers_are_compared_as_clients_hold_them(
    connection: Connection, one: str | None, other: str | None, same: bool
) -> None:
    for pair in ((one, other), (other, one)):
        assert (
            await connection.fetchval("select chatledger_internal.same_value($1::text::jsonb, $2::text::jsonb)", *pair)
            is same
        )


async def test_g4_tool_calls_added_by_two_copies_both_stay(connection: Connection) -> None:
    await new_session(connection, [assistant("m0", call("c0"))])
    for call_id in ("c1", "c2", "c1"):
        await save(connection, 2, amendments=[{"message_id": "m0", "add_tool_calls": [call(call_id)]}])
    [message] = await bodies(connection)
    assert [one["id"] for one in message["tool_calls"]] == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("part", "sqlstate"),
    [
        ({"messages": [user_json("m1"), {"role": "?"}]}, "CL007"),
        ({"messages": [user_json("m0", "another body")]}, "CL003"),
        ({"amendments": [{"message_id": "m0", "fields": {"content": {"from": "hi", "to": 7}}}]}, "CL007"),
        ({"amendments": [{"message_id": "m0", "fields": {"role": {"from": "user", "to": "assistant"}}}]}, "CL007"),
        ({"amendments": [{"message_id": "m0", "fields": {"message_id": {"to": "m1"}}}]}, "CL007"),
        ({"amendments": [{"message_id": "none", "fields": {"content": {"to": "x"}}}]}, "CL009"),
        ({"usage": [tokens("use", -1)]}, "CL008"),
        ({"usage": [tokens("", 1)]}, "CL008"),
        ({"fence": 1}, "CL005"),
        ({"user_id": "u2"}, "CL001"),
    ],
)
async def test_g10_a_bad_part_is_refused_and_nothing_is_stored(
    connection: Connection, part: dict[str, Any], sqlstate: str
) -> None:
    await new_session(connection, [user_json("m0")])
    before = await everything(connection)
    with refused(sqlstate):
        await save(connection, 2, head={"title": {"to": "T"}}, **part)
    assert await everything(connection) == before


@pytest.mark.parametrize("read_version", [None, 0, 2])
async def test_g11_a_deleted_session_stays_deleted(connection: Connection, read_version: int | None) -> None:
    await new_session(connection, [user_json("m0")])
    await connection.execute("select chatledger.delete_session('s1')")
    with refused("CL001"):
        await save(connection, read_version, messages=[user_json("m1")])
    assert await places(connection) == []


async def test_g11_one_that_was_saved_and_is_gone_is_not_created(connection: Connection) -> None:
    with refused("CL001"):
        await save(connection, 5, messages=[user_json("m0")])
