"""G12: a write costs the same whether the session holds 10 messages or 5,000. Counted, not timed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import append, assistant, everything, header, new_session, rows_touched, user_json, users

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection

SMALL, LARGE = "small", "large"
SIZES = {SMALL: 10, LARGE: 5_000}

WRITES = {
    "append": """select * from chatledger.append_messages('{session}', array[
        '{{"message_id": "{id}", "role": "user", "content": "hi"}}',
        '{{"message_id": "{id}+", "role": "user", "content": "hi"}}']::jsonb[])""",
    "append without ids": """select * from chatledger.append_messages('{session}',
        array['{{"role": "user", "content": "hi {id}"}}']::jsonb[])""",
    "append where it is expected": """select * from chatledger.append_messages('{session}',
        array['{{"message_id": "{id}", "role": "user", "content": "hi"}}']::jsonb[], 'u1',
        (select max(sequence) + 1 from chatledger.messages where session_id = '{session}' and not removed))""",
    "retry": """select * from chatledger.append_messages('{session}',
        array['{{"message_id": "m0", "role": "user", "content": "hi"}}']::jsonb[])""",
    "amend": """select * from chatledger.amend_message('{session}', 'm5', '{{"content": "{id}"}}')""",
    "add_tool_call": """select * from chatledger.add_tool_call('{session}',
        '{{"id": "{id}", "function": {{"name": "f"}}}}')""",
    "update_session": "select * from chatledger.update_session('{session}', p_title => '{id}')",
    "record_usage": "select * from chatledger.record_usage('{session}', '{id}', 1, 1)",
}


@pytest.fixture
async def sessions(connection: Connection) -> None:
    """A small and a large session that end alike, in tables whose statistics are those of a ledger at work."""
    for session_id, size in SIZES.items():
        messages = [*users(size - 2), user_json("last user"), assistant("last")]
        await new_session(connection, messages, session_id=session_id)
    await connection.execute("analyze chatledger.sessions, chatledger.messages")


async def explained(connection: Connection, write: str, session_id: str, number: int) -> Any:
    """What this one statement did in this one backend, whatever the rest of the server does."""
    statement = WRITES[write].format(session=session_id, id=f"{session_id} {number}")
    plan = await connection.fetchval(f"explain (analyze, buffers, wal, timing off, format json) {statement}")
    return json.loads(plan)[0]["Plan"]


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize("write", WRITES)
async def test_g12_write_logs_the_same_bytes(connection: Connection, write: str) -> None:
    least = {}
    for session_id in SIZES:
        plans = [await explained(connection, write, session_id, number) for number in range(15)]
        least[session_id] = min(plan["WAL Bytes"] for plan in plans)

    assert least[LARGE] <= least[SMALL] * 1.1
    assert write == "retry" or least[LARGE] > 0


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize("write", WRITES)
async def test_g12_write_looks_at_the_same_pages(connection: Connection, write: str) -> None:
    least = {}
    for session_id in SIZES:
        plans = [await explained(connection, write, session_id, number) for number in range(15)]
        least[session_id] = min(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)

    assert least[LARGE] > 0
    assert least[LARGE] <= least[SMALL] * 1.5 + 5


async def plans_of(connection: Connection, call: str) -> list[Any]:
    """The plan of each statement that one call runs, those inside functions and of foreign keys too, in order."""
    await connection.execute(
        """
        load 'auto_explain';
        set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
        set auto_explain.log_format = json; set client_min_messages = log;
        """
    )
    logged: list[str] = []
    connection.add_log_listener(lambda _, message: logged.append(str(message)))
    await connection.execute(call)
    await connection.execute("reset client_min_messages")
    return [json.loads(entry[entry.index("{") :])["Plan"] for entry in logged if "plan:" in entry]


@pytest.mark.usefixtures("sessions")
async def test_g12_append_is_three_statements_and_a_foreign_key_check_a_message(connection: Connection) -> None:
    plans = await plans_of(connection, WRITES["append"].format(session=LARGE, id="x"))
    assert [(plan.get("Operation"), plan["Node Type"]) for plan in plans] == [
        (None, "LockRows"),
        (None, "Nested Loop"),  # the tail
        *[(None, "LockRows")] * 2,  # the foreign key's
        ("Insert", "ModifyTable"),
        (None, "Function Scan"),  # the call itself
    ]


@pytest.mark.usefixtures("sessions")
async def test_g12_append_sets_up_no_subquery(connection: Connection) -> None:
    """Every part of a plan is set up on every call, whether it is needed or not."""
    (insert,) = [
        plan
        for plan in await plans_of(connection, WRITES["append"].format(session=LARGE, id="x"))
        if plan.get("Operation") == "Insert"
    ]
    assert [part["Node Type"] for part in insert["Plans"]] == ["Function Scan"]
    assert "Plans" not in insert["Plans"][0]


FLOOR = """
    with session as (
        update chatledger.sessions
        set next_sequence = next_sequence + 2, version = version + 1, updated_at = clock_timestamp()
        where id = '{session}' returning next_sequence - 2 as first, updated_at
    )
    insert into chatledger.messages (session_id, sequence, message_id, role, content, version, created_at)
    select '{session}', first, '{id}', 'user', 'hi', 1, updated_at from session
    union all select '{session}', first + 1, '{id}+', 'user', 'hi', 1, updated_at from session
"""


@pytest.mark.usefixtures("sessions")
async def test_g12_append_logs_little_more_than_its_rows(connection: Connection) -> None:
    """What it is compared with writes the same rows, and has neither a lock in front nor ids that may be there."""
    logged: list[int] = []
    for statement in (WRITES["append"], FLOOR):
        await connection.execute("update chatledger.sessions set next_sequence = next_sequence + 10000")
        bytes_of = []
        for number in range(15):
            text = statement.format(session=LARGE, id=f"{len(logged)}/{number:02}")
            plan = await connection.fetchval(f"explain (analyze, wal, timing off, format json) {text}")
            bytes_of.append(json.loads(plan)[0]["Plan"]["WAL Bytes"])
        logged.append(min(bytes_of))
    assert logged[0] <= logged[1] + 100


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize(
    "call",
    [
        *WRITES.values(),
        "select * from chatledger.read_session('{session}', p_last => 2)",
        "select * from chatledger.read_session('{session}', null, 1, 4990)",
        "select * from chatledger.get_messages('{session}', p_limit => 2)",
        "select * from chatledger.get_messages('{session}', p_limit => 2, p_after => 2500)",
    ],
)
async def test_g12_no_call_scans_the_messages(connection: Connection, call: str) -> None:
    plans = await plans_of(connection, call.format(session=LARGE, id="x"))
    assert len(plans) > 1
    assert [plan for plan in plans for part in parts_of(plan) if part == ("Seq Scan", "messages")] == []


def parts_of(plan: Any) -> list[tuple[str, str | None]]:
    below = [part for inner in plan.get("Plans", []) for part in parts_of(inner)]
    return [(plan["Node Type"], plan.get("Relation Name")), *below]


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize("write", WRITES)
async def test_g12_write_reads_the_same_rows(connection: Connection, write: str) -> None:
    touched = {
        session_id: await rows_touched(connection, WRITES[write].format(session=session_id, id="x"), "messages")
        for session_id in SIZES
    }
    assert touched[LARGE] <= max(touched[SMALL], 12)


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize(
    "read",
    [
        "select * from chatledger.read_session('large', null, {version} - 1, {next_sequence} - 2)",
        "select * from chatledger.read_session('large', p_last => 2)",
        "select * from chatledger.get_messages('large', p_limit => 2)",
        "select * from chatledger.get_messages('large', p_limit => 2, p_before => 2500)",
        "select * from chatledger.get_messages('large', p_limit => 2, p_after => 2500)",
    ],
)
async def test_g12_reading_a_part_does_not_read_the_rest(connection: Connection, read: str) -> None:
    await connection.execute("select chatledger.amend_message('large', 'm5', '{\"content\": \"amended\"}')")
    now = await connection.fetchrow("select version, next_sequence from chatledger_internal.session_now('large', null)")
    assert now is not None
    statement = read.format(**now)
    returned = len([row for row in await connection.fetch(statement) if "sequence" in row])

    assert 2 <= returned <= 4
    assert await rows_touched(connection, statement, "messages") <= 20


async def test_g12_append_writes_nothing_but_messages(connection: Connection) -> None:
    await new_session(connection, users(1))
    rows = "select xmin, ctid, * from chatledger.sessions"
    before = await connection.fetch(rows)
    for number in range(20):
        await append(connection, [user_json(f"a{number}")])
    assert await connection.fetch(rows) == before
    assert (await header(connection))["version"] == 22


async def test_g12_append_moves_the_sessions_row_once_an_hour(connection: Connection) -> None:
    await new_session(connection, users(1))
    await connection.execute("update chatledger.sessions set updated_at = updated_at - interval '2 hours'")
    before = await connection.fetchval("select active_hour from chatledger.sessions")
    places = []
    for number in range(3):
        await append(connection, [user_json(f"a{number}")])
        places.append(await connection.fetchval("select ctid::text from chatledger.sessions"))
    assert len(set(places)) == 1
    row = await connection.fetchrow("select * from chatledger.sessions")
    assert row is not None
    assert row["active_hour"] > before
    assert (row["next_sequence"], row["version"]) == (2, 3)
    assert [(await header(connection))[name] for name in ("next_sequence", "version")] == [4, 5]


async def test_g12_append_does_not_touch_the_index_of_amendments(connection: Connection) -> None:
    await new_session(connection)
    empty = await connection.fetchval("select pg_relation_size('chatledger.messages_amended')")

    for number in range(5):
        await append(connection, users(1000, f"{number}/"))
    assert await connection.fetchval("select pg_relation_size('chatledger.messages_amended')") == empty

    await connection.execute("select chatledger.truncate_session('s1', 0)")
    assert await connection.fetchval("select pg_relation_size('chatledger.messages_amended')") > empty
    assert len(await everything(connection)) == 5001


async def test_g12_append_looks_at_the_same_pages_while_somebody_holds_an_old_snapshot(
    connection: Connection, connect: Connect
) -> None:
    """Dead rows cannot be removed then: appends leave none that the next one would have to pass."""
    await new_session(connection, users(1))
    holder = await connect()

    async def pages_of_an_append(number: int) -> int:
        call = f"""select * from chatledger.append_messages('s1',
            array['{{"message_id": "a{number}", "role": "user", "content": "hi"}}']::jsonb[])"""
        plan = await connection.fetchval(f"explain (analyze, buffers, timing off, format json) {call}")
        node = json.loads(plan)[0]["Plan"]
        return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])

    async with holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select from chatledger.sessions")
        first = min([await pages_of_an_append(number) for number in range(10)])
        for number in range(10, 2000):
            await append(connection, [user_json(f"a{number}")])
        last = min([await pages_of_an_append(number) for number in range(2000, 2010)])
    assert last <= first + 8  # some levels of the indexes more
