"""message_body: what was appended comes out equal."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.properties import examples, messages, without_booleans
from tests.helpers.sql import Json, amend, append, assistant, bodies, call, new_session, tool, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}, "extra": None},
]


@pytest.mark.parametrize(
    "message",
    [
        user_json("a", None),
        {"message_id": "a", "role": "user"},
        user_json("a", ""),
        user_json("a", []),
        user_json("a", PARTS),
        user_json("a", [{}]),
        user_json("a", name=None, refusal=None, tool_calls=None, function_call=None, metadata=None, duration_ms=None),
        user_json("a", tool_call_id=None),
        user_json("a", name="", refusal=""),
        user_json("a", unknown=None),
        user_json("a", unknown=None, other=[None], nested={"deep": {"null": None}}),
        user_json("a", sequence=7, session_id="s9", created_at="yesterday", removed=True, extra={"extra": 1}),
        user_json("a", **{"": "empty key", 'it\'s "quoted" \\': 1, "{role}": 2, "ключ": 3}),
        assistant("a"),
        assistant("a", call("c1"), call("c2", "другой") | {"index": 0, "custom": None}),
        assistant("a", content=None, audio={"id": "x"}, annotations=[], reasoning_content="hm"),
        {"message_id": "a", "role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"message_id": "a", "role": "function", "name": "f", "content": "1"},
        {"message_id": "a", "role": "developer", "content": "d"},
        {"message_id": "a", "role": "system", "content": "s"},
        tool("a", "c1", duration_ms=0),
        tool("a", "c1", duration_ms=2**31 - 1, metadata={}),
        user_json("a", "h\u00e9llo \U0001f680 \u202e\ufeff\u2028 \x01\x7f\\u0000 '\"; drop table --\r\n\t"),
        user_json("a", metadata={"n": [1, 1.0, 1e5, 2**70, 0.1, -0.1, 1e-300, 1e300, -(2**63), 0, True, False, None]}),
    ],
    ids=lambda message: str(message)[20:80],
)
async def test_message_comes_out_as_it_went_in(connection: Connection, message: Json) -> None:
    await new_session(connection, [message])
    assert exactly(await bodies(connection)) == exactly([message])


@pytest.mark.parametrize("text", ["1", "1.0", "100000", "1180591620717411303424", "0.1", "1.10", "-0.5"])
async def test_number_in_metadata_keeps_its_notation(connection: Connection, text: str) -> None:
    await new_session(connection, [user_json("a", metadata={"n": json.loads(text)})])
    await connection.execute(
        "select chatledger.append_messages('s1', array[$1::text::jsonb])",
        f'{{"message_id": "b", "role": "user", "metadata": {{"n": {text}}}}}',
    )
    stored = (
        "select chatledger.message_body(m) -> 'metadata' ->> 'n' from chatledger.messages as m where message_id = 'b'"
    )
    assert await connection.fetchval(stored) == text


async def test_five_megabytes_of_text_come_out_as_they_went_in(connection: Connection) -> None:
    text = "".join(chr(0x21 + number % 0x2000) for number in range(2_000_000))
    assert len(text.encode()) > 5_000_000
    await new_session(connection, [user_json("a", text)])
    assert await bodies(connection) == [user_json("a", text)]


def exactly(value: Any) -> Any:
    """The value with its numbers as decimals, so that 2**70 and 2.0**70 are not mixed up, and true is not 1."""
    parsed = json.loads(json.dumps(value), parse_int=Decimal, parse_float=Decimal)
    return without_booleans(parsed)


async def stored_exactly(connection: Connection, session_id: str) -> list[Any]:
    rows = await connection.fetch(
        "select chatledger.message_body(m)::text as body from chatledger.messages as m where session_id = $1 "
        "order by sequence",
        session_id,
    )
    return [without_booleans(json.loads(row["body"], parse_int=Decimal, parse_float=Decimal)) for row in rows]


@examples
@given(batch=st.lists(messages, min_size=1, max_size=4))
async def test_any_valid_message_comes_out_equal(connection: Connection, batch: list[Json]) -> None:
    session_id = uuid4().hex
    await new_session(connection, batch, session_id=session_id)

    without_ids = [{key: value for key, value in message.items() if key != "message_id"} for message in batch]
    assert await stored_exactly(connection, session_id) == exactly(without_ids)


@examples
@given(message=messages)
async def test_g3_any_valid_message_is_recognised_again(connection: Connection, message: Json) -> None:
    session_id = uuid4().hex
    await new_session(connection, [message], session_id=session_id)

    (again,) = await append(connection, [message], session_id=session_id)
    assert not again["appended"]

    await amend(connection, message["message_id"], {"brand new key": 1}, session_id=session_id)
    (and_again,) = await append(connection, [message], session_id=session_id)
    assert not and_again["appended"]


async def test_g3_whole_duration_with_a_fraction_is_recognised_after_an_amendment(connection: Connection) -> None:
    """Python's json writes 12.0 for a float; the column holds 12."""
    message = user_json("a", duration_ms=12.0)
    await new_session(connection, [message])
    await amend(connection, "a", {"content": "changed"})

    (again,) = await append(connection, [message])

    assert not again["appended"]
