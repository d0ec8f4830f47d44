"""The views that operators look at."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.helpers.sql import (
    amend,
    append,
    assistant,
    call,
    new_session,
    one,
    tool,
    truncate,
    until_waiting,
    user_json,
    users,
)

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection

# session_holders


async def test_nobody_holds_a_session_that_nobody_writes_to(connection: Connection) -> None:
    await new_session(connection, users(3))
    assert await connection.fetch("select * from chatledger.session_holders") == []


async def test_holder_is_named_and_how_many_wait(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    await new_session(connection, session_id="s2")
    holder, first, second = await connect(), await connect(), await connect()
    await holder.execute("set application_name = 'the one that hangs'")

    holding = holder.transaction()
    await holding.start()
    await append(holder, [user_json("m0")])
    waiting = [asyncio.create_task(append(writer, [user_json("m1")])) for writer in (first, second)]
    await until_waiting(connection, 2)

    held = await one(connection, "select *, held_for >= '0' as since from chatledger.session_holders")
    assert (held["session_id"], held["pid"]) == ("s1", holder.get_server_pid())
    assert (held["application_name"], held["state"]) == ("the one that hangs", "idle in transaction")
    assert (held["user_name"], held["since"]) == ("chatledger", True)
    assert "append_messages" in held["query"]
    assert held["waiting"] == 2

    await holding.commit()
    await asyncio.gather(*waiting)
    assert await connection.fetch("select * from chatledger.session_holders") == []


async def test_holder_of_a_lock_alone_is_named_before_it_writes(connection: Connection, connect: Connect) -> None:
    await new_session(connection, users(1))
    holder = await connect()
    async with holder.transaction():
        await append(holder, users(1))  # a retry: stores nothing, but holds the lock
        held = await one(connection, "select * from chatledger.session_holders")
    assert held["session_id"] == "s1"


async def test_holders_of_two_sessions_are_told_apart(connection: Connection, connect: Connect) -> None:
    pids = {}
    holders = {session_id: await connect() for session_id in ("s1", "s2")}
    for session_id, holder in holders.items():
        await new_session(connection, session_id=session_id)
        await holder.execute("begin")
        await append(holder, [user_json("m0")], session_id=session_id)
        pids[session_id] = holder.get_server_pid()

    rows = await connection.fetch("select session_id, pid, waiting from chatledger.session_holders")

    assert {row["session_id"]: row["pid"] for row in rows} == pids
    assert {row["waiting"] for row in rows} == {0}


# session_overview


async def test_overview_has_a_row_a_live_session(connection: Connection) -> None:
    await new_session(connection, users(5))
    await truncate(connection, 3)
    await connection.execute(
        "select chatledger.update_session('s1', p_title => 'T', p_pinned => true, p_status => 'x'), "
        "chatledger.record_usage('s1', 'use', 3, 4)"
    )
    await new_session(connection, session_id="deleted")
    await connection.execute("select chatledger.delete_session('deleted')")

    row = await one(connection, "select * from chatledger.session_overview")

    assert (row["session_id"], row["user_id"], row["title"], row["status"], row["pinned"]) == (
        "s1",
        "u1",
        "T",
        "x",
        True,
    )
    assert (row["message_count"], row["total_tokens"], row["version"]) == (3, 7, 5)


# transcript


async def test_transcript_has_a_line_a_message(connection: Connection) -> None:
    await new_session(
        connection,
        [
            user_json("m0", "What is\n\n  42?"),
            assistant("m1", call("c1", "search"), call("c2", "count"), content=None),
            tool("m2", "c1", content=[{"type": "text", "text": "forty-two"}]),
            assistant("m3", content=None, refusal="No."),
            user_json("m4", "x" * 500),
            user_json("m5", "gone"),
        ],
    )
    await amend(connection, "m3", {"refusal": "Never."})
    await truncate(connection, 5)

    rows = await connection.fetch("select * from chatledger.transcript where session_id = 's1' order by sequence")

    assert [(row["sequence"], row["role"], row["text"], row["calls"], row["amended"]) for row in rows] == [
        (0, "user", "What is 42?", None, False),
        (1, "assistant", "", "search, count", False),
        (2, "tool", '[{"text": "forty-two", "type": "text"}]', None, False),
        (3, "assistant", "Never.", None, True),
        (4, "user", "x" * 100, None, False),
    ]


async def test_transcript_names_custom_tools(connection: Connection) -> None:
    await new_session(connection, [assistant("m0", {"id": "c1", "type": "custom", "custom": {"name": "grep"}})])
    assert (await one(connection, "select calls from chatledger.transcript"))["calls"] == "grep"
