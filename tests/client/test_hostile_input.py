"""G10: whatever is handed to the client is stored and read back, or refused by an error of ours.

A TypeError is right too, where Python itself raises it for an argument of a wrong type.

The calls are made up from the signatures of :class:`ChatLedger`, so a new method is tried too.
"""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatledger import ChatLedger, ChatLedgerError, ChatMessage, Usage
from tests.database.helpers import all_is_readable, assistant, call, everything, examples, new_session, tool, user

if TYPE_CHECKING:
    from tests.database.helpers import Connection


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


circle: dict[str, Any] = {}
circle["circle"] = circle

any_text = st.sampled_from(
    [
        "",
        "s1",
        "u1",
        "m0",
        "m1",
        "c1",
        "use1",
        "x" * 255,
        "x" * 256,
        "\U0001f680" * 255,
        "x" * 10_000,
        "a\0b",
        "\ud83d",
    ]
) | st.text(st.characters(), max_size=6)
no_json = st.sampled_from([float("nan"), float("inf"), datetime(2026, 1, 1, tzinfo=UTC), {1}, b"x", object, circle, 1j])
numbers = st.sampled_from(
    [0, -1, 1, 7.0, 7.5, -0.0, 1e23, 1e300, 5e-324, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63) - 1]
) | (st.sampled_from([10**400, 10**999, 10**1001]))
scalars = st.none() | st.booleans() | numbers | any_text
any_json = st.recursive(
    scalars | no_json | st.sampled_from([5, 90, 101, 250, 900, 5000]).map(deep),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
any_object = st.dictionaries(any_text | st.integers(0, 3), any_json, max_size=3)
roles = st.sampled_from(["user", "assistant", "tool", "function", "system", "developer"])
tool_calls = st.fixed_dictionaries({"id": any_text, "function": st.fixed_dictionaries({"name": any_text})}) | any_object
fields: dict[str, st.SearchStrategy[Any]] = {
    "message_id": any_text,
    "content": scalars | st.lists(any_object, max_size=2),
    "tool_call_id": any_text,
    "tool_calls": st.none() | st.lists(tool_calls, max_size=2),
    "metadata": st.none() | any_object,
    "duration_ms": numbers,
    "name": any_text,
}
mappings = st.builds(
    lambda body, more: more | body, st.fixed_dictionaries({"role": roles}, optional=fields), any_object
)
models = st.builds(  # not validated: somebody assigned to the fields
    lambda body, more: ChatMessage.model_construct(None, **({"message_id": "new"} | body), **more),
    st.fixed_dictionaries({"role": roles}, optional=fields),
    st.dictionaries(st.sampled_from(["audio", "x"]), any_json, max_size=1),
)
messages = mappings | models | any_json
integers = st.none() | st.integers(-2, 5) | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**70)])
wrong = st.sampled_from([7, 7.5, b"s1", ["s1"], {"s1": 1}, object(), float("nan")])

BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "session_id": st.just("s1") | any_text,
    "user_id": st.none() | st.just("u1") | any_text,
    "message_id": st.sampled_from(["m0", "m1"]) | any_text,
    "messages": st.lists(messages, max_size=3) | any_json,
    "metadata": st.none() | any_object,
    "patch": any_object | mappings,
    "tool_call": tool_calls,
    "usage": st.builds(Usage.model_construct, prompt_tokens=numbers, completion_tokens=numbers, total_tokens=numbers),
    "older_than": st.sampled_from(
        [timedelta(0), timedelta.max, timedelta.min, timedelta(days=-1), timedelta(days=365_001)]
    ),
    "only_if_empty": st.booleans(),
    "pinned": st.none() | st.booleans(),
}
for number in ("after", "before", "limit", "last", "at_sequence", "from_sequence", "expected_sequence"):
    BY_NAME[number] = integers
BY_NAME["fence"] = BY_NAME["expected_version"] = st.none() | integers

METHODS = {
    name: inspect.signature(method).parameters
    for name, method in inspect.getmembers(ChatLedger, inspect.iscoroutinefunction)
    if not name.startswith("_") and name not in ("open", "close", "save_session")
}


def arguments(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments by name: mostly such as it takes, now and then of another type altogether."""
    return st.fixed_dictionaries(
        {
            name: BY_NAME.get(name, st.none() | any_text) | (BY_NAME["usage"] if name == "usage" else wrong)
            for name in METHODS[method]
            if name != "self"
        }
    )


@pytest.fixture
async def stocked(connection: Connection) -> Connection:
    """A connection to a ledger with some of everything."""
    await new_session(connection, [user("m0"), assistant("m1", call("c1")), tool("m2", "c1")])
    await connection.execute("select chatledger.record_usage('s1', 'use1', 1, 2)")
    return connection


@pytest.mark.parametrize("method", METHODS)
@examples
@given(data=st.data())
async def test_g10_any_arguments_are_taken_or_refused(stocked: Connection, method: str, data: st.DataObject) -> None:
    given_arguments = data.draw(arguments(method))
    outer = stocked.transaction()
    await outer.start()
    try:
        before = await everything(stocked)
        try:
            async with stocked.transaction():
                await getattr(ChatLedger(stocked), method)(**given_arguments)
        except (ChatLedgerError, TypeError):
            assert await everything(stocked) == before
        else:
            await all_is_readable(stocked)
    finally:
        await outer.rollback()
