"""add_tool_call: G3, G4, G10 as SQL callers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import (
    Json,
    add_call,
    append,
    assistant,
    bodies,
    call,
    everything,
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


async def test_call_is_attached_to_the_turns_assistant_message(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1"))])

    row = await add_call(connection, call("c2"))

    assert tuple(row) == ("m1", 1, 3, True)
    assert await bodies(connection) == [user_json("m0"), assistant("m1", call("c1"), call("c2"))]
    assert (await header(connection))["version"] == 3


@pytest.mark.parametrize("tool_calls", [{}, {"tool_calls": None}, {"tool_calls": []}], ids=str)
async def test_message_without_calls_gets_its_first(connection: Connection, tool_calls: Json) -> None:
    message = {"message_id": "m1", "role": "assistant", "content": "hello"}
    await new_session(connection, [user_json("m0"), message | tool_calls])
    await add_call(connection, call("c1"))
    assert await bodies(connection) == [user_json("m0"), assistant("m1", call("c1"))]


async def test_call_is_attached_past_tool_results_to_the_last_assistant_message(connection: Connection) -> None:
    await new_session(
        connection,
        [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1"), assistant("m3", call("c2")), tool("m4", "c2")],
    )
    row = await add_call(connection, call("c3"))
    assert (row["message_id"], row["sequence"]) == ("m3", 3)


async def test_user_message_is_the_boundary_of_the_turn(connection: Connection) -> None:
    await new_session(connection, [assistant("m0"), user_json("m1")])

    row = await add_call(connection, call("c1"), message_id="m2")

    assert tuple(row) == ("m2", 2, 3, True)
    assert await bodies(connection) == [
        assistant("m0"),
        user_json("m1"),
        {"message_id": "m2", "role": "assistant", "content": "", "tool_calls": [call("c1")]},
    ]


async def test_empty_session_gets_a_message_with_a_generated_id(connection: Connection) -> None:
    await new_session(connection)
    row = await add_call(connection, call("c1"))
    assert row["sequence"] == 0
    assert [message["message_id"] for message in await bodies(connection)] == [row["message_id"]]


async def test_removed_messages_are_not_attached_to(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1")])
    await truncate(connection, 1)
    row = await add_call(connection, call("c1"), message_id="m2")
    assert (row["message_id"], row["sequence"]) == ("m2", 2)


async def test_keys_of_a_tool_call_that_we_do_not_know_are_kept(connection: Connection) -> None:
    strange = call("c1") | {"index": 0, "provider": {"thought": None}}
    await new_session(connection, [assistant("m0")])
    await add_call(connection, strange)
    assert await bodies(connection) == [assistant("m0", strange)]


async def test_g3_same_call_again_changes_nothing(connection: Connection) -> None:
    await new_session(connection, [assistant("m0")])
    await add_call(connection, call("c1"))
    before = await everything(connection)

    row = await add_call(connection, call("c1"))

    assert tuple(row) == ("m0", 0, 3, False)
    assert await everything(connection) == before


async def test_g3_same_call_again_many_turns_later_changes_nothing(connection: Connection) -> None:
    await new_session(connection, [assistant("m0")])
    await add_call(connection, call("c1"))
    await append(connection, [tool("m1", "c1"), user_json("m2"), assistant("m3"), user_json("m4")])
    before = await everything(connection)

    row = await add_call(connection, call("c1"), message_id="m5")

    assert (row["message_id"], row["sequence"], row["added"]) == ("m0", 0, False)
    assert await everything(connection) == before


async def test_g3_call_that_the_turn_was_appended_with_is_not_added_again(connection: Connection) -> None:
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1"), assistant("m3")])
    before = await everything(connection)

    row = await add_call(connection, call("c1"))

    assert (row["message_id"], row["added"]) == ("m1", False)
    assert await everything(connection) == before


async def test_g3_late_retry_does_not_bring_a_removed_call_back(connection: Connection) -> None:
    await new_session(connection, [user_json("m0")])
    await add_call(connection, call("c1"), message_id="m1")
    await truncate(connection, 1)
    before = await everything(connection)

    row = await add_call(connection, call("c1"), message_id="m1")

    assert (row["message_id"], row["added"]) == ("m1", False)
    assert await everything(connection) == before


async def test_same_call_id_may_stand_in_two_sessions(connection: Connection) -> None:
    for session_id in ("s1", "s2"):
        await new_session(connection, [assistant("m0")], session_id=session_id)
        assert (await add_call(connection, call("c1"), session_id=session_id))["added"]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "c1",
        1,
        [],
        [call("c1")],
        {},
        {"function": {"name": "f"}},
        {"id": "", "function": {"name": "f"}},
        {"id": 1, "function": {"name": "f"}},
        {"id": ["c1"], "function": {"name": "f"}},
        {"id": "c1"},
        {"id": "c1", "function": {}},
        {"id": "c1", "function": {"name": ""}},
        {"id": "c1", "function": {"name": ["f"]}},
        {"id": "c1", "function": [{"name": "f"}]},
    ],
    ids=str,
)
async def test_g10_what_is_not_a_tool_call_is_refused(connection: Connection, bad: Any) -> None:
    await new_session(connection, [assistant("m0")])
    before = await everything(connection)

    with refused("CL007", index=None, field="tool_calls"):
        await add_call(connection, bad)

    assert await everything(connection) == before


async def test_g10_sql_null_is_not_a_tool_call(connection: Connection) -> None:
    await new_session(connection, [assistant("m0")])
    with refused("CL007", index=None, field="tool_calls"):
        await connection.execute("select chatledger.add_tool_call('s1', null)")


async def test_g10_tool_call_id_is_limited(connection: Connection) -> None:
    await new_session(connection, [assistant("m0")])
    await add_call(connection, call("x" * 255))
    with refused("CL008", argument="tool_call.id"):
        await add_call(connection, call("x" * 256))


async def test_g3_message_id_of_another_message_is_refused(connection: Connection) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL003", message_id="m0"):
        await add_call(connection, call("c1"), message_id="m0")

    assert await everything(connection) == before


async def test_g10_message_id_is_checked(connection: Connection) -> None:
    await new_session(connection, users(1))
    with refused("CL007", field="message_id"):
        await add_call(connection, call("c1"), message_id="x" * 256)


async def test_g7_stale_fence_is_refused(connection: Connection) -> None:
    await new_session(connection, [assistant("m0")])
    with refused("CL005"):
        await connection.execute(
            'select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\', p_fence => 1)'
        )
    assert await bodies(connection) == [assistant("m0")]
