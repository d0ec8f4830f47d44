"""How properties are tried, and any message that the ledger stores."""

from __future__ import annotations

import os
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# For properties: the same examples on every run, no files left behind. The examples of a test share its database, so
# each takes a session of its own. CHATLEDGER_TEST_TORTURE=1: many more, other ones on every run; what fails prints the
# seed that repeats it.
TORTURE = os.environ.get("CHATLEDGER_TEST_TORTURE") == "1"
examples = settings(
    max_examples=1000 if TORTURE else 60,
    derandomize=not TORTURE,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(text, json_values, max_size=3)
named = st.fixed_dictionaries({"name": text.filter(bool)})
tool_calls = st.builds(
    lambda more, call_id, kind, name: more | {"id": call_id, kind: name},
    objects,
    text.filter(bool),
    st.sampled_from(["function", "custom"]),
    st.builds(lambda more, name: more | name, objects, named),
)
known: dict[str, st.SearchStrategy[Any]] = {
    "content": st.none() | text | st.lists(objects, max_size=3),
    "name": st.none() | text,
    "refusal": st.none() | text,
    "tool_calls": st.none() | st.lists(tool_calls, max_size=3),
    "function_call": st.none() | objects,
    "metadata": st.none() | objects,
    "duration_ms": st.none() | st.integers(0, 2**31 - 1),
}
messages = st.builds(
    lambda unknown, fields, role: {**unknown, **fields, **role, "message_id": uuid4().hex},
    st.dictionaries(text.filter(lambda key: key not in {*known, "role", "message_id", "tool_call_id"}), json_values),
    st.fixed_dictionaries({}, optional=known),
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant", "function"])})
    | st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": text.filter(bool)}),
)


def without_booleans(value: Any) -> Any:
    """The value with a text for each boolean, since to Python true is 1."""
    if isinstance(value, bool):
        return f"the boolean {value}"
    if isinstance(value, list):
        return [without_booleans(item) for item in value]
    if isinstance(value, dict):
        return {key: without_booleans(item) for key, item in value.items()}
    return value
