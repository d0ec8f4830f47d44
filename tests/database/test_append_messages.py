"""append_messages: G1, G2, G3, G10 as SQL callers see them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import (
    Json,
    add_call,
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
    rows_touched,
    said,
    tool,
    truncate,
    updated_at,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connection, Psql


async def test_example_of_the_header_comment_works_from_psql(psql: Psql) -> None:
    output = await psql(
        """
        select session_id from chatledger.create_session('s1', 'u1');
        select message_id, sequence, appended from chatledger.append_messages('s1',
            array['{"message_id": "m1", "role": "user", "content": "hi"}']::jsonb[]);
        """
    )
    assert output.split() == ["s1", "m1|0|t"]


# G1, G2: order, batches, times


async def test_g1_messages_are_numbered_from_zero_across_batches(connection: Connection) -> None:
    await new_session(connection)

    await append(connection, [user_json("a"), user_json("b")])
    await append(connection, [user_json("c")])

    assert await places(connection) == [(0, "a"), (1, "b"), (2, "c")]


async def test_answer_has_a_row_a_message_in_input_order(connection: Connection) -> None:
    await new_session(connection, users(1))

    rows = await append(connection, [user_json("z"), user_json("m0"), user_json("a"), user_json("k")])

    assert [(row["message_id"], row["sequence"], row["appended"]) for row in rows] == [
        ("z", 1, True),
        ("m0", 0, False),
        ("a", 2, True),
        ("k", 3, True),
    ]


async def test_empty_batch_stores_nothing_and_returns_nothing(connection: Connection) -> None:
    await new_session(connection)
    before = await everything(connection)

    assert await append(connection, []) == []
    assert await everything(connection) == before


async def test_g2_batch_has_one_timestamp_that_is_the_sessions_updated_at(connection: Connection) -> None:
    await new_session(connection, users(1))

    rows = await append(connection, users(5, "b"))

    stored = await connection.fetch("select distinct created_at from chatledger.messages where sequence > 0")
    changed_at = await updated_at(connection)
    assert {row["created_at"] for row in rows} == {row["created_at"] for row in stored} == {changed_at}


async def test_g2_two_appends_in_one_transaction_have_times_of_their_own(connection: Connection) -> None:
    await new_session(connection)

    async with connection.transaction():
        (first,) = await append(connection, [user_json("a")])
        (second,) = await append(connection, [user_json("b")])

    assert first["created_at"] < second["created_at"]


async def test_g2_times_do_not_decrease_when_the_clock_steps_back(connection: Connection) -> None:
    await new_session(connection, users(1))
    ahead = await connection.fetchval(
        "update chatledger.sessions set updated_at = updated_at + interval '1 hour' returning updated_at"
    )

    rows = await append(connection, [user_json("a"), user_json("b")])

    assert [row["created_at"] for row in rows] == [ahead, ahead]
    assert await updated_at(connection) == ahead


@pytest.mark.parametrize(
    "write",
    [
        "select chatledger.amend_message('s1', 'm0', '{\"content\": \"changed\"}')",
        'select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\')',
        "select chatledger.update_session('s1', p_title => 'changed')",
        "select chatledger.record_usage('s1', 'use', 1, 1)",
        "select chatledger.truncate_session('s1', 0)",
    ],
)
async def test_g2_no_write_turns_updated_at_back(connection: Connection, write: str) -> None:
    await new_session(connection, users(1))
    ahead = await connection.fetchval(
        "update chatledger.sessions set updated_at = updated_at + interval '1 hour' returning updated_at"
    )

    await connection.execute(write)

    assert await updated_at(connection) == ahead
    assert (await header(connection))["version"] == 3  # so it did write


async def test_g1_append_that_is_rolled_back_leaves_no_trace_and_no_gap(connection: Connection) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    transaction = connection.transaction()
    await transaction.start()
    await append(connection, [user_json("lost")])
    await transaction.rollback()

    assert await everything(connection) == before
    (row,) = await append(connection, [user_json("kept")])
    assert row["sequence"] == 1


async def test_version_counts_one_for_a_batch(connection: Connection) -> None:
    await new_session(connection)
    await append(connection, users(3))
    assert (await header(connection))["version"] == 2


async def test_same_message_id_may_stand_in_two_sessions(connection: Connection) -> None:
    await new_session(connection, users(1))
    await new_session(connection, [user_json("m0", "another")], session_id="s2")
    assert await bodies(connection, "s2") == [user_json("m0", "another")]


# G3: exactly once


async def test_g3_retry_of_a_batch_stores_nothing_and_returns_its_first_place(connection: Connection) -> None:
    await new_session(connection, users(2))
    first = await append(connection, users(3, "b"))
    await append(connection, [user_json("later")])
    before = await everything(connection)

    again = await append(connection, users(3, "b"))

    assert [tuple(row)[:3] for row in again] == [tuple(row)[:3] for row in first]
    assert [row["appended"] for row in again] == [False, False, False]
    assert await everything(connection) == before


async def test_g3_stored_and_new_message_in_one_batch_stores_the_new_one(connection: Connection) -> None:
    await new_session(connection, users(2))

    rows = await append(connection, [user_json("m1"), user_json("new")])

    assert [(row["sequence"], row["appended"]) for row in rows] == [(1, False), (2, True)]
    assert await places(connection) == [(0, "m0"), (1, "m1"), (2, "new")]


async def test_g3_same_id_and_body_twice_in_one_batch_is_stored_once(connection: Connection) -> None:
    await new_session(connection)

    rows = await append(connection, [user_json("a"), user_json("b"), user_json("a"), user_json("c")])

    assert [(row["message_id"], row["sequence"], row["appended"]) for row in rows] == [
        ("a", 0, True),
        ("b", 1, True),
        ("a", 0, False),
        ("c", 2, True),
    ]
    assert await places(connection) == [(0, "a"), (1, "b"), (2, "c")]


async def test_g3_same_id_with_another_body_in_one_batch_is_refused(connection: Connection) -> None:
    await new_session(connection)
    before = await everything(connection)

    with refused("CL003", index=2, field="message_id", message_id="a"):
        await append(connection, [user_json("a", "one"), user_json("b"), user_json("a", "two")])

    assert await everything(connection) == before


async def test_g3_same_id_with_another_body_is_refused_and_nothing_of_the_batch_stored(connection: Connection) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL003", index=1, field="message_id", message_id="m0"):
        await append(connection, [user_json("new"), user_json("m0", "other words"), user_json("newer")])

    assert await everything(connection) == before


@pytest.mark.parametrize(
    "other",
    [
        {"role": "assistant"},
        {"content": None},
        {"content": ""},
        {"name": "anna"},
        {"metadata": {}},
        {"metadata": {"a": 2}},
        {"unknown": 1},
        {"tool_calls": []},
        {"duration_ms": 8},
    ],
    ids=str,
)
async def test_g3_every_field_belongs_to_the_body(connection: Connection, other: Json) -> None:
    await new_session(connection, [user_json("m0", metadata={"a": 1}, duration_ms=7)])
    with refused("CL003", index=0):
        await append(connection, [user_json("m0", metadata={"a": 1}, duration_ms=7) | other])


async def test_g3_order_of_keys_and_notation_of_numbers_are_not_the_body(connection: Connection, psql: Psql) -> None:
    await new_session(connection, [user_json("m0", metadata={"a": 1, "b": 100})])
    output = await psql(
        """select appended from chatledger.append_messages('s1', array['{"role": "user",  "content": "hi",
            "metadata": {"b": 1e2, "a": 1.0}, "message_id": "m0"}']::jsonb[])"""
    )
    assert output.strip() == "f"


async def test_g3_retry_of_a_message_that_was_amended_since_returns_its_first_place(connection: Connection) -> None:
    await new_session(connection)
    (first,) = await append(connection, [user_json("m0", "draft", metadata={"n": 1.50})])
    await amend(connection, "m0", {"content": "final", "metadata": {"n": None}})
    await amend(connection, "m0", {"content": "final, really"})
    before = await everything(connection)

    (again,) = await append(connection, [user_json("m0", "draft", metadata={"n": 1.50})])

    assert tuple(again) == ("m0", 0, first["created_at"], False)
    assert await everything(connection) == before


async def test_g3_stale_copy_of_the_amended_message_stores_nothing(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", "draft")])
    await amend(connection, "m0", {"content": "final"})
    before = await everything(connection)

    (again,) = await append(connection, [user_json("m0", "final")])

    assert (again["sequence"], again["appended"]) == (0, False)
    assert await everything(connection) == before


async def test_g3_another_body_is_refused_also_after_an_amendment(connection: Connection) -> None:
    await new_session(connection, [user_json("m0", "draft")])
    await amend(connection, "m0", {"content": "final"})
    with refused("CL003", index=0, message_id="m0"):
        await append(connection, [user_json("m0", "something else")])


async def test_g3_retry_of_an_append_that_a_tool_call_was_added_to_returns_its_place(connection: Connection) -> None:
    message = {"message_id": "m0", "role": "assistant", "content": "let me see"}
    await new_session(connection, [message])
    await add_call(connection, call("c1"))

    (again,) = await append(connection, [message])

    assert (again["sequence"], again["appended"]) == (0, False)
    assert await bodies(connection) == [message | {"tool_calls": [call("c1")]}]


async def test_g3_retry_of_a_message_that_truncate_removed_does_not_bring_it_back(connection: Connection) -> None:
    await new_session(connection, users(3))
    await truncate(connection, 1)
    before = await everything(connection)

    rows = await append(connection, users(3))

    assert [(row["sequence"], row["appended"]) for row in rows] == [(0, False), (1, False), (2, False)]
    assert await everything(connection) == before


async def test_g3_id_of_a_removed_message_cannot_be_used_for_another(connection: Connection) -> None:
    await new_session(connection, users(1))
    await truncate(connection, 0)
    with refused("CL003", index=0, message_id="m0"):
        await append(connection, [user_json("m0", "something else")])


async def test_g3_message_without_an_id_gets_one_and_is_another_each_time(connection: Connection) -> None:
    await new_session(connection)
    message = {"role": "user", "content": "hi"}

    (first,) = await append(connection, [message])
    (second,) = await append(connection, [message])

    assert first["message_id"] != second["message_id"]
    assert await places(connection) == [(0, first["message_id"]), (1, second["message_id"])]


# p_expected_sequence


async def test_expected_sequence_that_is_right_appends(connection: Connection) -> None:
    await new_session(connection, users(2))
    (row,) = await append(connection, [user_json("a")], expected_sequence=2)
    assert row["sequence"] == 2


@pytest.mark.parametrize("expected", [0, 1, 3, -1])
async def test_g10_expected_sequence_that_is_wrong_is_refused(connection: Connection, expected: int) -> None:
    await new_session(connection, users(2))
    before = await everything(connection)

    with refused("CL002", session_id="s1", expected_sequence=expected, next_sequence=2, version=2):
        await append(connection, [user_json("a")], expected_sequence=expected)

    assert await everything(connection) == before


async def test_g3_retry_with_its_expected_sequence_does_not_conflict_with_itself(connection: Connection) -> None:
    await new_session(connection)
    first = await append(connection, users(2), expected_sequence=0)

    again = await append(connection, users(2), expected_sequence=0)

    assert [row["sequence"] for row in again] == [row["sequence"] for row in first] == [0, 1]


async def test_expected_sequence_of_an_empty_session_is_zero_also_after_a_truncation(connection: Connection) -> None:
    await new_session(connection, users(2))
    await truncate(connection, 0)
    with refused("CL002", next_sequence=2):
        await append(connection, [user_json("a")], expected_sequence=0)


# p_fence


async def lease(connection: Connection, fence: int, seconds: int) -> None:
    await connection.execute(
        "insert into chatledger.streams (session_id, stream_id, holder, fence, began_at, expires_at) "
        "values ('s1', 'x', 'o', $1, now(), now() + $2)",
        fence,
        timedelta(seconds=seconds),
    )


async def test_g7_current_fence_may_write(connection: Connection) -> None:
    await new_session(connection)
    await lease(connection, fence=3, seconds=3600)
    (row,) = await append(connection, [user_json("a")], fence=3)
    assert row["appended"]


@pytest.mark.parametrize(("fence", "seconds"), [(2, 3600), (4, 3600), (3, -1)], ids=["old", "unknown", "expired"])
async def test_g7_stale_fence_is_refused(connection: Connection, fence: int, seconds: int) -> None:
    await new_session(connection, users(1))
    await lease(connection, fence=3, seconds=seconds)
    before = await everything(connection)

    with refused("CL005", session_id="s1", fence=fence):
        await append(connection, [user_json("a")], fence=fence)

    assert await everything(connection) == before


async def test_g7_fence_of_a_session_without_a_stream_is_refused(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL005", fence=0):
        await append(connection, [user_json("a")], fence=0)


async def test_writer_without_a_fence_is_not_stopped_by_a_stream(connection: Connection) -> None:
    await new_session(connection)
    await lease(connection, fence=3, seconds=3600)
    (row,) = await append(connection, [user_json("a")])
    assert row["appended"]


# G10: bad input

F: Json = {"function": {"name": "f"}}
BAD_MESSAGES: list[tuple[str, Any]] = [
    ("", None),
    ("", "text"),
    ("", 1),
    ("", []),
    ("", [user_json("a")]),
    ("role", {}),
    ("role", {"content": "hi"}),
    ("role", {"role": None}),
    ("role", {"role": ""}),
    ("role", {"role": 1}),
    ("role", {"role": ["user"]}),
    ("role", {"role": "User"}),
    ("role", {"role": "robot"}),
    ("message_id", user_json("") | {"content": "hi"}),
    ("message_id", user_json("x" * 256)),
    ("message_id", {"message_id": None, "role": "user"}),
    ("message_id", {"message_id": 7, "role": "user"}),
    ("content", user_json("a", 1)),
    ("content", user_json("a", True)),
    ("content", user_json("a", {"type": "text", "text": "hi"})),
    ("content", user_json("a", ["hi"])),
    ("content", user_json("a", [None])),
    ("content", user_json("a", [{"type": "text", "text": "hi"}, "hi"])),
    ("content", user_json("a", [[{"type": "text", "text": "hi"}]])),
    ("tool_call_id", {"role": "tool", "content": "42"}),
    ("tool_call_id", tool("a", "")),
    ("tool_call_id", {"role": "tool", "tool_call_id": None}),
    ("tool_call_id", {"role": "tool", "tool_call_id": 1}),
    ("tool_call_id", user_json("a", tool_call_id=1)),
    ("tool_calls", assistant("a") | {"tool_calls": "c1"}),
    ("tool_calls", assistant("a") | {"tool_calls": call("c1")}),
    ("tool_calls", assistant("a") | {"tool_calls": ["c1"]}),
    ("tool_calls", assistant("a") | {"tool_calls": [None]}),
    ("tool_calls", assistant("a") | {"tool_calls": [[call("c1")]]}),
    ("tool_calls", assistant("a") | {"tool_calls": [call("c1"), [call("c2")]]}),
    ("tool_calls", assistant("a", F)),
    ("tool_calls", assistant("a", F | {"id": None})),
    ("tool_calls", assistant("a", F | {"id": ""})),
    ("tool_calls", assistant("a", F | {"id": 1})),
    ("tool_calls", assistant("a", F | {"id": ["c1"]})),
    ("tool_calls", assistant("a", {"id": "c1"})),
    ("tool_calls", assistant("a", {"id": "c1", "function": [{"name": "f"}]})),
    ("tool_calls", assistant("a", {"id": "c1", "function": {"name": ["f"]}})),
    ("tool_calls", assistant("a", {"id": "c1", "custom": {}})),
    ("tool_calls", assistant("a", {"id": "c1", "function": None})),
    ("tool_calls", assistant("a", {"id": "c1", "function": "f"})),
    ("tool_calls", assistant("a", {"id": "c1", "function": {}})),
    ("tool_calls", assistant("a", {"id": "c1", "function": {"name": ""}})),
    ("tool_calls", assistant("a", {"id": "c1", "function": {"name": 1}})),
    ("tool_calls", assistant("a", call("c1"), {"id": "c2"})),
    ("function_call", assistant("a") | {"function_call": "f"}),
    ("function_call", assistant("a") | {"function_call": ["f"]}),
    ("name", user_json("a", name=1)),
    ("refusal", assistant("a", refusal=["no"])),
    ("metadata", user_json("a", metadata="m")),
    ("metadata", user_json("a", metadata=[])),
    ("metadata", user_json("a", metadata=1)),
    ("duration_ms", user_json("a", duration_ms="5")),
    ("duration_ms", user_json("a", duration_ms=1.5)),
    ("duration_ms", user_json("a", duration_ms=-1)),
    ("duration_ms", user_json("a", duration_ms=2**31)),
    ("duration_ms", user_json("a", duration_ms=True)),
    ("duration_ms", user_json("a", duration_ms=[5])),
    ("duration_ms", user_json("a", duration_ms={})),
]


@pytest.mark.parametrize(("field", "bad"), BAD_MESSAGES, ids=lambda value: str(value)[:60])
async def test_g10_bad_message_is_refused_by_index_and_field(connection: Connection, field: str, bad: Any) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL007", index=1, field=field) as info:
        await append(connection, [user_json("good"), bad, user_json("good too")])

    assert "message 1:" in said(info.value)["message"]
    assert await everything(connection) == before


async def test_g10_first_bad_message_of_several_is_named(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL007", index=2, field="content"):
        await append(connection, [*users(2), user_json("a", 1), {"role": "robot"}])


async def test_g10_refusal_does_not_quote_what_was_said(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL007") as info:
        await append(connection, [{"role": "robot", "content": "a secret"}])
    assert "secret" not in str(said(info.value))


@pytest.mark.parametrize(
    "messages",
    ["null", "array[array['{}'::jsonb], array['{}'::jsonb]]"],
    ids=["null", "two dimensions"],
)
async def test_g10_what_is_not_a_plain_array_is_refused(connection: Connection, messages: str) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL008", argument="messages"):
        await connection.execute(f"select * from chatledger.append_messages('s1', {messages})")

    assert await everything(connection) == before


async def test_g10_null_element_is_refused_by_index(connection: Connection) -> None:
    await new_session(connection, users(1))
    before = await everything(connection)

    with refused("CL007", index=1, field=""):
        await connection.execute(
            """select * from chatledger.append_messages('s1', array['{"role": "user"}', null]::jsonb[])"""
        )

    assert await everything(connection) == before


async def test_array_that_starts_elsewhere_is_counted_from_zero(connection: Connection) -> None:
    await new_session(connection)
    (row,) = await connection.fetch(
        """select * from chatledger.append_messages('s1', '[5:5]={"{\\"role\\": \\"user\\"}"}')"""
    )
    assert row["sequence"] == 0
    with refused("CL007", index=0, field="role"):
        await connection.execute("select * from chatledger.append_messages('s1', '[5:5]={\"{}\"}')")


@pytest.mark.parametrize("session_id", ["", "x" * 256, None], ids=["empty", "256 characters", "null"])
async def test_g10_id_that_no_session_can_have_is_refused(connection: Connection, session_id: str | None) -> None:
    with refused("CL008", argument="session_id"):
        await append(connection, [user_json("a")], session_id=session_id)
    assert await everything(connection) == []


async def test_g10_unknown_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await append(connection, [user_json("a")])
    assert await everything(connection) == []


async def test_bad_messages_are_refused_before_the_session_is_looked_for(connection: Connection) -> None:
    with refused("CL007", index=0, field="role"):
        await append(connection, [{}], session_id="unknown")


async def test_ids_of_255_characters_are_taken(connection: Connection) -> None:
    await new_session(connection, [user_json("é" * 255)], session_id="ü" * 255)
    assert await places(connection, "ü" * 255) == [(0, "é" * 255)]


async def test_both_kinds_of_tool_call_are_taken(connection: Connection) -> None:
    custom = {"id": "c2", "type": "custom", "custom": {"name": "grep", "input": "x"}}
    await new_session(connection, [assistant("a", call("c1"), custom)])
    assert await bodies(connection) == [assistant("a", call("c1"), custom)]


async def test_g10_a_batch_has_an_upper_limit(connection: Connection) -> None:
    await new_session(connection)
    append_so_many = """select count(*) from chatledger.append_messages('s1', array(
        select jsonb_build_object('message_id', n::text, 'role', 'user') from generate_series(1, $1::integer) as n))"""
    with refused("CL014", messages=100_001, limit=100_000):
        await connection.fetchval(append_so_many, 100_001)
    assert await places(connection) == []


async def test_g12_a_batch_that_overlaps_a_stored_one_looks_each_message_up_once(connection: Connection) -> None:
    """Not once for each of the others: a retry of many must not take their square."""
    append_so_many = """select count(*) from chatledger.append_messages('{session}', array(
        select jsonb_build_object('message_id', n::text, 'role', 'user') from generate_series({first}, {last}) as n))"""
    touched = {}
    for count in (100, 1000):
        session_id = f"s{count}"
        await new_session(connection, session_id=session_id)
        await connection.execute(append_so_many.format(session=session_id, first=1, last=count // 2))
        statement = append_so_many.format(session=session_id, first=1, last=count)
        touched[count] = await rows_touched(connection, statement, "messages")
        assert len(await places(connection, session_id)) == count
    assert touched[1000] <= 12 * touched[100]
