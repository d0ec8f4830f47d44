"""amend_message: G4, G10 as SQL callers see them."""

from __future__ import annotations

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
    places,
    refused,
    tool,
    truncate,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def test_patch_replaces_what_it_names_and_leaves_the_rest(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", "draft", name="anna", unknown=1), user_json("m1")])

    row = await amend(connection, "m0", {"content": "final", "unknown": [2]})

    assert tuple(row) == ("m0", 0, 3, True)
    assert await bodies(connection) == [user_json("m0", "final", name="anna", unknown=[2]), user_json("m1")]


async def test_amending_keeps_place_and_time(connection: Connection) -> None:
    await new_session(connection, users(2))
    before = await connection.fetch("select sequence, created_at from chatledger.messages order by 1")

    await amend(connection, "m0", {"content": "changed"})

    assert await connection.fetch("select sequence, created_at from chatledger.messages order by 1") == before
    assert (await header(connection))["version"] == 3


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        ({"content": None}, {"role": "assistant", "name": "a", "tool_calls": [], "x": 1}),
        ({"name": None, "x": None}, {"role": "assistant", "content": "hello", "tool_calls": []}),
        ({"tool_calls": None}, {"role": "assistant", "content": "hello", "name": "a", "x": 1}),
        ({"absent": None}, {"role": "assistant", "content": "hello", "name": "a", "tool_calls": [], "x": 1}),
    ],
    ids=str,
)
async def test_null_removes_the_key(connection: Connection, patch: Any, changed: Any) -> None:
    await new_session(connection, [assistant("m0", name="a", x=1)])
    await amend(connection, "m0", patch)
    assert await bodies(connection) == [{"message_id": "m0"} | changed]


async def test_text_may_become_a_list_of_parts_and_back(connection: Connection) -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]
    await new_session(connection, [user_json("m0", "hi")])

    await amend(connection, "m0", {"content": parts})
    assert await bodies(connection) == [user_json("m0", parts)]

    await amend(connection, "m0", {"content": ""})
    assert await bodies(connection) == [user_json("m0", "")]


async def test_g4_metadata_is_merged_key_by_key(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", metadata={"keep": 1, "change": {"deep": 1}, "drop": 1})])

    await amend(connection, "m0", {"metadata": {"change": 2, "drop": None, "new": []}})

    assert await bodies(connection) == [user_json("m0", metadata={"keep": 1, "change": 2, "new": []})]


async def test_metadata_is_made_when_there_was_none_and_removed_by_null(connection: Connection) -> None:
    await new_session(connection, users(1))

    await amend(connection, "m0", {"metadata": {"a": 1}})
    assert await bodies(connection) == [user_json("m0", metadata={"a": 1})]

    await amend(connection, "m0", {"metadata": None})
    assert await bodies(connection) == [user_json("m0")]


async def test_g4_two_who_amend_different_fields_of_what_they_read_both_keep_theirs(connection: Connection) -> None:
    await new_session(connection, users(1))
    await amend(connection, "m0", {"metadata": {"a": 1}})
    await amend(connection, "m0", {"metadata": {"b": 2}})
    assert await bodies(connection) == [user_json("m0", metadata={"a": 1, "b": 2})]


async def test_g4_amendment_from_a_stale_copy_is_refused(connection: Connection) -> None:
    await new_session(connection, users(1))
    await amend(connection, "m0", {"content": "newer"})  # makes version 3
    await append(connection, [user_json("m1")])
    before = await everything(connection)

    with refused("CL004", session_id="s1", message_id="m0", expected_version=2, amended_version=3):
        await amend(connection, "m0", {"content": "from an old copy"}, expected_version=2)

    assert await everything(connection) == before


async def test_g4_change_of_another_message_does_not_make_a_copy_stale(connection: Connection) -> None:
    await new_session(connection, users(2))
    await amend(connection, "m1", {"content": "newer"})

    row = await amend(connection, "m0", {"content": "changed"}, expected_version=2)

    assert (row["version"], row["amended"]) == (4, True)


async def test_current_version_may_amend_again(connection: Connection) -> None:
    await new_session(connection, users(1))
    first = await amend(connection, "m0", {"content": "one"}, expected_version=2)
    second = await amend(connection, "m0", {"content": "two"}, expected_version=first["version"])
    assert second["amended"]
    assert await bodies(connection) == [user_json("m0", "two")]


async def test_without_an_expected_version_amends_whatever_is_there(connection: Connection) -> None:
    await new_session(connection, users(1))
    await amend(connection, "m0", {"content": "one"})
    assert (await amend(connection, "m0", {"content": "two"}))["amended"]


@pytest.mark.parametrize(
    "patch", [{}, {"content": "newer"}, {"absent": None}, {"metadata": {"a": 1, "b": None}}, {"metadata": {}}], ids=str
)
async def test_g3_amending_to_what_it_already_is_changes_nothing_and_is_not_refused(
    connection: Connection, patch: Any
) -> None:
    await new_session(connection, [user_json("m0", metadata={"a": 1})])
    await amend(connection, "m0", {"content": "newer"})
    before = await everything(connection)

    row = await amend(connection, "m0", patch, expected_version=2)

    assert tuple(row) == ("m0", 0, 3, False)
    assert await everything(connection) == before


@pytest.mark.parametrize(
    ("field", "patch"),
    [
        ("content", {"content": 1}),
        ("content", {"content": ["text"]}),
        ("tool_calls", {"tool_calls": [{"id": "c1"}]}),
        ("tool_calls", {"tool_calls": [call("c1"), [call("c2")]]}),
        ("metadata", {"metadata": 1}),
        ("metadata", {"metadata": []}),
        ("name", {"name": 1}),
        ("duration_ms", {"duration_ms": -1}),
    ],
    ids=str,
)
async def test_g10_patch_that_would_make_the_message_invalid_is_refused(
    connection: Connection, field: str, patch: Any
) -> None:
    await new_session(connection, [assistant("m0", call("c0"))])
    before = await everything(connection)

    with refused("CL007", message_id="m0", field=field):
        await amend(connection, "m0", patch)

    assert await everything(connection) == before


async def test_g10_tool_message_keeps_its_call(connection: Connection) -> None:
    await new_session(connection, [assistant("m0", call("c1")), tool("m1", "c1")])
    with refused("CL007", message_id="m1", field="tool_call_id"):
        await amend(connection, "m1", {"tool_call_id": None})


@pytest.mark.parametrize("patch", ["text", 1, None, [], [{}], {"role": "system"}, {"message_id": "m9"}], ids=str)
async def test_g10_what_is_not_a_patch_is_refused(connection: Connection, patch: Any) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL008", argument="patch"):
        await amend(connection, "m0", patch)

    assert await everything(connection) == before


async def test_g10_sql_null_is_not_a_patch(connection: Connection) -> None:
    await new_session(connection, users(1))
    with refused("CL008", argument="patch"):
        await connection.execute("select chatledger.amend_message('s1', 'm0', null)")


@pytest.mark.parametrize("message_id", ["unknown", "", None])
async def test_g10_unknown_message_is_refused(connection: Connection, message_id: Any) -> None:
    await new_session(connection, users(1))
    with refused("CL009", session_id="s1", message_id=message_id):
        await amend(connection, message_id, {"content": "x"})


async def test_removed_message_is_not_found(connection: Connection) -> None:
    await new_session(connection, users(2))
    await truncate(connection, 1)
    with refused("CL009", message_id="m1"):
        await amend(connection, "m1", {"content": "x"})
    assert await places(connection) == [(0, "m0")]


async def test_message_of_another_session_is_not_found(connection: Connection) -> None:
    await new_session(connection, users(1))
    await new_session(connection, session_id="s2")
    with refused("CL009", session_id="s2"):
        await amend(connection, "m0", {"content": "x"}, session_id="s2")


async def test_g7_stale_fence_is_refused(connection: Connection) -> None:
    await new_session(connection, users(1))
    with refused("CL005"):
        await connection.execute("select chatledger.amend_message('s1', 'm0', '{\"content\": \"x\"}', p_fence => 1)")
    assert await bodies(connection) == users(1)
