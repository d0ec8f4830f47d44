"""G10: what a login role hands to a function is stored so that all can read it, or refused with an SQLSTATE of ours.

The calls are made up from the signatures in ``db/functions``, so a new function is tried too. An argument that is no
JSON, no array or no interval at all is refused by Postgres before any function runs; such calls are not made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.helpers.catalog import PUBLIC, Argument
from tests.helpers.properties import examples
from tests.helpers.sql import (
    all_is_readable,
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
    said,
    tool,
    user_json,
    users,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.helpers.sql import ConnectAs, Connection

# Arguments, as the text that Postgres makes them from


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def listed(words: str) -> list[str]:
    return words.split()


IDS = ["", " ", *listed("s1 u1 m0 m1 c1 use1"), "x" * 255, "x" * 256, "\U0001f680" * 255, "x" * 100_000]
CURSORS = [*listed("t/0/ f/1750000000000000/s1 f/99999999999999999/s1 f/-1/s1 f// /"), "t/" + "9" * 30 + "/s1"]
ODD = ["%s", "%", "'; drop table chatledger.messages; --", "\\", "$1", "\x01\x7f\r\n\t", "\u202e\ufeff\u2028", "NaN"]
texts = st.sampled_from([*IDS, *CURSORS, *ODD]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
)

SMALL = listed("0 -0.0 -1 1 7.0 7.5 1e3 0.1 1e-400 1e-16000")
LARGE = listed("2147483647 2147483648 9223372036854775807 9223372036854775808 1000000000001 1.5e400 -1e400 1e999")
HUGE = [*listed("1e1001 1e5000 -1e5000 1e131071"), "9" * 900, "9" * 5000, "0." + "3" * 5000]
numbers = st.sampled_from([*SMALL, *LARGE, *HUGE])
words = st.sampled_from(
    ["user", "assistant", "tool", "function", "system", "developer", "s1", "m0", "m1", "m2", "c1", "c9", "use1", "T"]
)
scalars = st.sampled_from(["null", "true", "false", '""']) | numbers | words.map(quoted) | texts.map(quoted)
FIELDS = listed("message_id role content name tool_call_id refusal tool_calls function_call metadata duration_ms")
OF_CALLS = listed("id type function custom arguments extra sequence removed created_at")
OF_CHANGES = listed("fields add_tool_calls from to title pinned status usage_id prompt_tokens completion_tokens")
keys = st.sampled_from([*FIELDS, *OF_CALLS, *OF_CHANGES, "total_tokens", "", "\u043a", "a.b", "$", "x" * 300])


def json_list(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def json_object(items: dict[str, str]) -> str:
    return "{" + ",".join(f"{quoted(key)}:{value}" for key, value in items.items()) + "}"


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.dictionaries(keys, values, max_size=4).map(json_object)


deep = st.sampled_from([nested(depth) for depth in (90, 98, 99, 100, 101, 250, 1000, 4000, 100_000)]) | st.sampled_from(
    [90, 99, 100, 101, 250, 2000]
).map(lambda depth: '{"a":' * depth + "1" + "}" * depth)
any_json = st.recursive(
    scalars | deep, lambda inner: st.lists(inner, max_size=3).map(json_list) | objects(inner), max_leaves=8
)
tool_calls = st.builds(
    lambda more, call_id, name: json_object({"id": call_id, "function": json_object({"name": name}), **more}),
    st.dictionaries(keys, any_json, max_size=1),
    words.map(quoted) | scalars,
    words.map(quoted) | scalars,
)
messages = st.builds(
    lambda given, more: json_object(given | more),
    st.fixed_dictionaries(
        {"role": words.map(quoted)},
        optional={
            "message_id": words.map(quoted) | scalars,
            "content": scalars | st.lists(objects(scalars), max_size=2).map(json_list),
            "tool_calls": st.lists(tool_calls, max_size=2).map(json_list),
            "metadata": objects(any_json),
            "duration_ms": numbers,
            "tool_call_id": words.map(quoted),
        },
    ),
    st.dictionaries(keys, any_json, max_size=1),
)
changes = objects(objects(any_json))
amendments = st.fixed_dictionaries(
    {"message_id": words.map(quoted)},
    optional={
        "fields": changes,
        "metadata": changes,
        "add_tool_calls": st.lists(tool_calls, max_size=2).map(json_list),
    },
).map(json_object)
usage = st.fixed_dictionaries(
    {"usage_id": words.map(quoted), "prompt_tokens": numbers, "completion_tokens": numbers},
    optional={"total_tokens": numbers},
).map(json_object)
header_changes = st.dictionaries(st.sampled_from(["title", "pinned", "status", "metadata"]), objects(any_json)).map(
    json_object
)


def array_literal(items: Sequence[str | None]) -> str:
    escaped = ["NULL" if i is None else '"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in items]
    return "{" + ",".join(escaped) + "}"


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    odd = ["{}", "{NULL}", "[2:2]={NULL}", "{{NULL,NULL},{NULL,NULL}}", '{"7"}', '{"null"}', '{{"{}"}}', "{{{}}}", "{"]
    plain = st.lists(items | st.none(), max_size=3).map(array_literal)
    return (
        st.lists(items, max_size=3).map(array_literal)
        | plain.map(lambda literal: "{" + literal + "," + literal + "}")
        | items.map(lambda item: "[-3:-3]=" + array_literal([item]))
        | st.sampled_from(odd)
    )


integers = st.integers(-2, 5) | st.sampled_from([2**31 - 1, 2**31 - 2, -(2**31), 100, 1001])
BY_TYPE: dict[str, st.SearchStrategy[str]] = {
    "text": texts,
    "bool": st.sampled_from(["true", "false"]),
    "int4": integers.map(str),
    "int8": (integers | st.sampled_from([2**63 - 1, -(2**63), 10**12, 10**12 + 1])).map(str),
    "interval": st.sampled_from(listed("0 1us -1us 1hour 1000years 1001years 178000000years infinity -infinity")),
    "jsonb": any_json | objects(any_json) | messages,
    "jsonb[]": arrays(any_json | messages),
    "messages": objects(any_json) | messages,
}
# What gets a call past its first checks.
FITTING: dict[str, st.SearchStrategy[str]] = {
    "p_session_id": st.just("s1"),
    "p_user_id": st.just("u1"),
    "p_message_id": st.sampled_from(["m0", "m1", "m2"]),
    "p_messages": arrays(messages),
    "p_tool_call": tool_calls,
    "p_patch": messages | objects(any_json),
    "p_metadata": objects(any_json),
    "p_header": header_changes,
    "p_amendments": arrays(amendments),
    "p_usage": arrays(usage),
    "p_fence": st.just("7"),
}


def hostile(argument: Argument) -> st.SearchStrategy[str | None]:
    """Something for an argument: often what fits, null, or anything that its type takes."""
    name, kind = argument
    return FITTING.get(name, BY_TYPE[kind]) | st.none() | BY_TYPE[kind]


def cast(kind: str, number: int) -> str:
    if kind == "messages":
        return f"jsonb_populate_record(null::chatledger.messages, ${number}::text::jsonb)"
    return f"${number}::text::{kind}"


async def takes(connection: Connection, kind: str, text: str | None) -> bool:
    """Whether Postgres can make a value of this type from the text; else it refuses the call itself."""
    try:
        async with connection.transaction():
            await connection.execute(f"select {cast(kind, 1)} is null", text)
    except (asyncpg.DataError, asyncpg.StatementTooComplexError):
        return False
    return True


# The ledger that they are called on


@pytest.fixture
async def member(connection: Connection, connect_as: ConnectAs) -> Connection:
    """A login role that may call everything, on a ledger with some of everything."""
    await new_session(connection, [user_json("m0"), assistant("m1", call("c1")), tool("m2", "c1")])
    await new_session(connection, [user_json("m0")], session_id="s2", user_id="u2")
    await new_session(connection, session_id="gone")
    await connection.execute(
        "insert into chatledger.streams (session_id, stream_id, holder, fence, began_at, expires_at) "
        "values ('s1', 'x', 'o', 7, now(), now() + interval '1 hour')"
    )
    await connection.execute("select chatledger.delete_session('gone')")
    await connection.execute("select chatledger.record_usage('s1', 'use1', 1, 2)")
    return await connect_as("chatledger_admin")


async def refusal_of(connection: Connection, call: str, arguments: list[str | None]) -> dict[str, Any] | None:
    """What a call was refused with; None when it was not."""
    try:
        async with connection.transaction():
            await connection.execute("set local statement_timeout = '20s'")
            await connection.fetch(call, *arguments)
    except asyncpg.PostgresError as error:
        return said(error)
    return None


@pytest.mark.parametrize("function", PUBLIC)
@examples
@given(data=st.data())
async def test_g10_any_arguments_are_taken_or_refused(member: Connection, function: str, data: st.DataObject) -> None:
    arguments = PUBLIC[function]
    given_texts = [data.draw(hostile(argument), label=argument[0]) for argument in arguments]
    transaction = member.transaction()
    await transaction.start()
    try:
        for (_, kind), text in zip(arguments, given_texts, strict=True):
            assume(await takes(member, kind, text))
        before = await everything(member)
        passed = ", ".join(f"{name} => {cast(kind, n)}" for n, (name, kind) in enumerate(arguments, start=1))
        refusal = await refusal_of(member, f"select * from chatledger.{function}({passed})", given_texts)
        if refusal is None:
            await all_is_readable(member)
        else:
            assert refusal["sqlstate"].startswith("CL"), refusal
            assert refusal["message"]
            assert refusal["hint"]
            assert await everything(member) == before
    finally:
        await transaction.rollback()


# What that found, and what it would not find

WITH_JSON = {
    "append_messages": """append_messages('s1', array[('{"role": "user", "x": ' || $1::text || '}')::jsonb])""",
    "amend_message": """amend_message('s1', 'm0', ('{"x": ' || $1::text || '}')::jsonb)""",
    "add_tool_call": """add_tool_call('s1',
        ('{"id": "c", "function": {"name": "f", "x": ' || $1::text || '}}')::jsonb)""",
    "create_session": """create_session('s2', p_metadata => ('{"x": ' || $1::text || '}')::jsonb)""",
    "update_session": """update_session('s1', p_metadata => ('{"x": ' || $1::text || '}')::jsonb)""",
    "save_session": """save_session('s1', p_read_version => 1,
        p_header => ('{"metadata": {"y": {"to": {"x": ' || $1::text || '}}}}')::jsonb)""",
    "an amendment": """save_session('s1', p_read_version => 1, p_amendments => array[('{"message_id": "m0",
        "metadata": {"x": {"to": ' || $1::text || '}}}')::jsonb])""",
}


@pytest.mark.parametrize("function", WITH_JSON)
@pytest.mark.parametrize("value", [nested(90), "9" * 1000, "-1e999", "0." + "3" * 5000], ids=lambda value: value[:9])
async def test_json_that_every_reader_can_read_is_stored(connection: Connection, function: str, value: str) -> None:
    await new_session(connection, [user_json("m0")])
    await connection.execute(f"select chatledger.{WITH_JSON[function]}", value)
    await all_is_readable(connection)


@pytest.mark.parametrize("function", WITH_JSON)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (nested(101), "is nested more than 100 deep"),
        ('{"a":' * 4000 + "1" + "}" * 4000, "is nested more than 100 deep"),
        ("1e1000", "has a number of more than 1000 digits"),
        ("[[-1e131071]]", "has a number of more than 1000 digits"),
    ],
    ids=lambda value: value[:9],
)
async def test_g10_json_that_some_reader_could_not_read_is_refused(
    connection: Connection, function: str, value: str, problem: str
) -> None:
    """Else one message would keep its session, and every export that it is in, from all readers in Python."""
    await new_session(connection, [user_json("m0")])
    before = await everything(connection)
    with pytest.raises(asyncpg.PostgresError, match=problem) as refusal:
        await connection.execute(f"select chatledger.{WITH_JSON[function]}", value)
    assert said(refusal.value)["sqlstate"] in ("CL007", "CL008")
    assert await everything(connection) == before


async def test_g10_the_field_that_cannot_be_read_is_named(connection: Connection) -> None:
    await new_session(connection)
    deepest = json.loads(nested(100))
    await append(connection, [user_json("m0", x=deepest)])
    for value in ([deepest], 10**1000):
        with refused("CL007", index=1, field="x"):
            await append(connection, [user_json("m1"), user_json("m2", y=1, x=value)])


async def test_g10_nesting_that_postgres_cannot_parse_is_refused_by_postgres(connection: Connection) -> None:
    await new_session(connection)
    with pytest.raises(asyncpg.StatementTooComplexError):
        await connection.execute(f"select chatledger.{WITH_JSON['append_messages']}", nested(100_000))
    assert await places(connection) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("header", value) for value in ("[]", '"x"', "null", "7", '{"title": "T"}')),
        ("header", '{"title": {"to": 7}}'),
        *(("header", value) for value in ('{"pinned": {"from": "no"}}', '{"metadata": []}', '{"metadata": {"a": 1}}')),
        *(("amendments", value) for value in ("{NULL}", '{"7"}', '{"{}"}', '{{"{}"},{"{}"}}')),
        *(("amendments", f'{{{quoted(quoted_json)}}}') for quoted_json in (
            '{"message_id": "m0", "fields": []}', '{"message_id": "m0", "fields": {"content": "x"}}',
            '{"message_id": "m0", "metadata": 7}', '{"message_id": "m0", "add_tool_calls": {}}',
        )),
        *(("usage", f'{{{quoted(quoted_json)}}}') for quoted_json in (
            "null", "{}", '{"usage_id": "u", "prompt_tokens": 1}',
            '{"usage_id": "u", "prompt_tokens": 1e400, "completion_tokens": 1}',
            '{"usage_id": "u", "prompt_tokens": 1.5, "completion_tokens": 1}',
            '{"usage_id": 7, "prompt_tokens": 1, "completion_tokens": 1}',
        )),
        *((argument, None) for argument in ("messages", "amendments", "usage")),
    ],
)  # fmt: skip
async def test_g10_save_session_refuses_what_it_cannot_take_apart(
    connection: Connection, argument: str, value: str | None
) -> None:
    await new_session(connection, [user_json("m0")])
    before = await everything(connection)
    kind = "jsonb" if argument == "header" else "jsonb[]"
    with refused("CL008", argument=argument):
        await connection.execute(
            f"select chatledger.save_session('s1', p_read_version => 1, p_{argument} => $1::text::{kind})", value
        )
    assert await everything(connection) == before


async def test_after_the_last_sequence_comes_nothing(connection: Connection) -> None:
    await new_session(connection, users(2))
    assert await connection.fetch("select * from chatledger.get_messages('s1', p_after => 2147483647)") == []


async def test_a_full_session_takes_no_more(connection: Connection) -> None:
    """After two thousand million messages: an error of Postgres's, and nothing is stored."""
    await new_session(connection)
    await connection.execute("update chatledger.sessions set next_sequence = 2147483646")
    await append(connection, [user_json("last")])
    before = await everything(connection)
    for batch in ([user_json("more")], [user_json("last"), user_json("more")], users(3)):
        with pytest.raises(asyncpg.NumericValueOutOfRangeError):
            await append(connection, batch)
    assert await everything(connection) == before


async def test_a_session_changed_as_often_as_can_be_counted_does_not_change_any_more(connection: Connection) -> None:
    await new_session(connection, [user_json("m0")])
    await connection.execute("update chatledger.sessions set version = 9223372036854775807")
    before = await everything(connection)
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await append(connection, [user_json("m1")])
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await amend(connection, "m0", {"content": "x"})
    assert await everything(connection) == before
    assert (await header(connection))["version"] == 2**63 - 1


async def test_more_messages_at_once_than_a_statement_takes_arguments(connection: Connection) -> None:
    await new_session(connection)
    receipts = await append(connection, users(65_536))
    assert [receipt["sequence"] for receipt in receipts] == list(range(65_536))
    with refused("CL007", index=65_536, field="role"):
        await append(connection, [*users(65_536), {"message_id": "bad"}])


async def test_fifty_megabytes_of_text_in_one_message(connection: Connection) -> None:
    content = "0123456789" * 5_000_000
    await new_session(connection, [user_json("m0", content), user_json("m1")])
    assert await bodies(connection) == [user_json("m0", content), user_json("m1")]
    (again, _) = await append(connection, [user_json("m0", content), user_json("m1")])
    assert not again["appended"]


@pytest.mark.parametrize("literal", ["[2:3]", "[-5:-4]", "[0:1]"])
async def test_an_array_that_starts_elsewhere_is_an_array(connection: Connection, literal: str) -> None:
    """Positions in errors, and the order, go by the elements, not by their subscripts."""
    await new_session(connection)
    good = f'{literal}={{"{{\\"message_id\\":\\"a\\",\\"role\\":\\"user\\"}}",'
    await connection.execute(
        "select chatledger.append_messages('s1', $1::text::jsonb[])",
        good + r'"{\"message_id\":\"b\",\"role\":\"user\"}"}',
    )
    assert await places(connection) == [(0, "a"), (1, "b")]
    with refused("CL007", index=1, field="role"):
        await connection.execute("select chatledger.append_messages('s1', $1::text::jsonb[])", good + '"{}"}')
