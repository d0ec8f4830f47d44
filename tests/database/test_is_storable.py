"""is_storable and message_problem are one rule in two ways: the first decides on every append, the second says why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

FUNCTION = {"name": "f"}
CALLS: list[Any] = [
    {"id": "c", "function": FUNCTION},
    {"id": "c", "custom": FUNCTION},
    {"id": "c", "custom": FUNCTION, "function": None},
    {"id": "", "function": FUNCTION},
    {"id": None, "function": FUNCTION},
    {"id": 7, "function": FUNCTION},
    {"id": ["c"], "function": FUNCTION},
    {"function": FUNCTION},
    {"id": "c"},
    {"id": "c", "function": {}},
    {"id": "c", "function": "f"},
    {"id": "c", "function": [FUNCTION]},
    {"id": "c", "custom": [FUNCTION]},
    {"id": "c", "function": {"name": ""}},
    {"id": "c", "function": {"name": None}},
    {"id": "c", "function": {"name": ["f"]}},
]
VALUES: list[Any] = [
    *(None, True, "", "x", "null", "tool", "é" * 255, "é" * 256),
    *(0, 1, -1, 7.0, 1.5, 1e3, 2**31 - 1, 2**31),
    *({}, {"a": 1}, [], [None], [1], ["x"], [[]], [{}], [[{}]], [{}, 1], ["tool"], [["tool"]]),
    *CALLS,
    *([call] for call in CALLS),
    *([CALLS[0], call] for call in CALLS),
    *([[call]] for call in CALLS[:2]),
]
FIELDS = ["role", "message_id", "content", "tool_calls", "tool_call_id", "name", "refusal", "function_call"]
FIELDS += ["metadata", "duration_ms", "other"]
WHOLE: list[Any] = [
    {"role": "robot"},
    *({"role": role} for role in ("system", "developer", "user", "assistant", "tool", "function")),
    {"role": "tool", "tool_call_id": "c"},
    {},
]


@pytest.mark.parametrize("whole", WHOLE, ids=str)
async def test_g10_is_storable_is_what_has_no_problem(connection: Connection, whole: Any) -> None:
    messages = [whole, *({**whole, field: value} for field in FIELDS for value in VALUES)]
    messages += [[message] for message in messages] + VALUES

    rows = await connection.fetch(
        "select message, chatledger_internal.is_storable(message) as storable, "
        "chatledger_internal.message_problem(message) as problem "
        "from unnest($1::text[]::jsonb[]) as message",
        [json.dumps(message) for message in messages],
    )

    assert [row for row in rows if row["storable"] is not (row["problem"] is None)] == []
    assert any(row["storable"] for row in rows) is (whole.get("role") not in (None, "robot"))
