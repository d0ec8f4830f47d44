"""Each call is one round trip, however much it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chatledger import ChatLedger, ChatMessage, Usage

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

CALLS: dict[str, Callable[[ChatLedger], Awaitable[Any]]] = {
    "create_session": lambda ledger: ledger.create_session("s2"),
    "append_messages": lambda ledger: ledger.append_messages("s1", [ChatMessage(role="user") for _ in range(100)]),
    "get_session": lambda ledger: ledger.get_session("s1"),
    "get_messages": lambda ledger: ledger.get_messages("s1"),
    "list_sessions": lambda ledger: ledger.list_sessions(None),
    "update_session": lambda ledger: ledger.update_session("s1", title="T", metadata={"a": 1}),
    "amend_message": lambda ledger: ledger.amend_message("s1", "m1", {"content": "changed"}, expected_version=2),
    "add_tool_call": lambda ledger: ledger.add_tool_call("s1", {"id": "c1", "function": {"name": "f"}}),
    "record_usage": lambda ledger: ledger.record_usage("s1", Usage(prompt_tokens=1)),
    "truncate_session": lambda ledger: ledger.truncate_session("s1", 0),
    "fork_session": lambda ledger: ledger.fork_session("s1"),
    "delete_session": lambda ledger: ledger.delete_session("s1"),
}


async def sent(connection: Connection, call: Awaitable[Any]) -> list[str]:
    """The statements that a call sends."""
    statements: list[str] = []
    with connection.query_logger(lambda query: statements.append(query.query)):
        await call
    await asyncio.sleep(0)  # asyncpg logs from the event loop's next turn
    return statements


@pytest.mark.parametrize("call", CALLS)
async def test_call_is_one_statement(connection: Connection, call: str) -> None:
    ledger = ChatLedger(connection)
    await ledger.create_session("s1")
    await ledger.append_messages("s1", [ChatMessage(message_id="m1", role="user", content="hi")])

    assert len(await sent(connection, CALLS[call](ledger))) == 1


async def test_save_of_all_that_can_change_is_one_statement(connection: Connection) -> None:
    ledger = ChatLedger(connection)
    await ledger.create_session("s1")
    await ledger.append_messages("s1", [ChatMessage(message_id="m1", role="user", content="hi")])
    session = await ledger.get_session("s1")
    assert session is not None
    session.title, session.usage, session.messages[0].content = "T", [Usage(prompt_tokens=1)], "changed"
    session.messages.extend(ChatMessage(role="user") for _ in range(100))

    assert len(await sent(connection, ledger.save_session(session))) == 1
