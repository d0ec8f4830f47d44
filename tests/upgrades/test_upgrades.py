"""From the schema of every release, with data, to this one: nothing is lost, and the client of then still works.

What then was installed, and what its client sent, is in this folder; ``snapshot.py`` tells where from.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from chatledger import migrate
from chatledger.postgres.migrations import sql_folder
from tests.helpers.schema import dump
from tests.helpers.sql import Psql

from . import snapshot

if TYPE_CHECKING:
    from tests.helpers.sql import Connection
FOLDER = Path(__file__).parent
THIS_TREE = "this tree"
"""Nothing was changed since, so this one goes through the same steps without telling much: it keeps them working."""
RELEASES = [*sorted(path.stem for path in FOLDER.glob("[0-9][0-9][0-9][0-9].sql")), THIS_TREE]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The snapshots of all releases, and one of this tree."""
    snapshot.write(tmp_path, THIS_TREE)
    for path in FOLDER.glob("*.sql"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def messages(*given: dict[str, Any]) -> list[str]:
    return [json.dumps(message) for message in given]


CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
ODD = {"message_id": "odd", "role": "user", "content": [{"type": "text", "text": "h\u00e9"}], "x": None, "name": "ada"}


# The life of a session named {}, as the client's calls: function, arguments.
LIFE: list[tuple[str, tuple[Any, ...]]] = [
    ("create_session", ("{}", "u1", "A title", '{"k": {"n": 1e3}}', "active")),
    (
        "append_messages",
        ("{}", messages({"message_id": "m0", "role": "user", "content": "hi"}, ODD), "u1", 0, None),
    ),
    ("append_messages", ("{}", messages({"message_id": "m2", "role": "assistant"}, ODD), None, None, None)),
    ("add_tool_call", ("{}", json.dumps(CALL), "u1", "new", None)),
    (
        "append_messages",
        ("{}", messages({"message_id": "m3", "role": "tool", "tool_call_id": "c1", "content": "42"}), None, None, None),
    ),
    ("amend_message", ("{}", "m3", '{"content": "43", "metadata": {"a": 1}}', None, "u1", None)),
    ("update_session", ("{}", "u1", "Another title", False, '{"k": null, "l": "x"}', True, "done")),
    ("record_usage", ("{}", "use1", 10, 5, None, "u1", '{"model": "m", "tier": "flex"}')),
    ("fork_session", ("{}", "{}-fork", 1, "u1", None)),
    (
        "save_session",
        (
            "{}",
            "u1",
            5,
            json.dumps({"title": {"from": "Another title", "to": "A third"}, "metadata": {"m": {"to": [1, None]}}}),
            messages({"message_id": "m4", "role": "assistant", "content": "It is 43."}),
            messages({"message_id": "m0", "fields": {"content": {"from": "hi", "to": "hello"}}}),
            messages({"usage_id": "use2", "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
            None,
        ),
    ),
    ("truncate_session", ("{}", 4, "u1", None, None)),
    ("create_session", ("{}-gone", "u1", None, None, "active")),
    ("delete_session", ("{}-gone", "u1")),
]
LEASES = {"begin_stream", "renew_stream", "end_stream", "follow_session"}
"""Not made here: what they answer holds for a while only."""
READS: list[tuple[str, tuple[Any, ...]]] = [
    ("read_session", ("{}", "u1")),
    ("read_session", ("{}-fork", "u1", None)),
    ("read_session", ("{}", None, 3)),
    ("read_session", ("{}", None, 4, 2, None)),
    ("get_messages", ("{}", "u1", None, None, 2)),
    ("get_messages", ("{}", None, 0, None, 100)),
    ("list_sessions", ("u1", 50, None, None, None)),
    ("list_sessions", (None, 1, None, "third", "done")),
    ("verify_session", ("{}",)),
    ("verify_session", (None,)),
    ("purge_sessions", (timedelta(days=365), 10)),
]


def calls_of(folder: Path, release: str) -> list[str]:
    return (folder / f"{release}.calls.sql").read_text("utf-8").splitlines()


async def run(
    connection: Connection, calls: list[str], steps: list[tuple[str, tuple[Any, ...]]], session_id: str
) -> list[list[dict[str, Any]]]:
    """Make the calls as the client of then would, on a session of this name; return their answers."""
    answers = []
    for function, arguments in steps:
        count = len(arguments)
        [call] = [call for call in calls if f".{function}(" in call and len(set(re.findall(r"\$\d", call))) == count]
        given = [value.replace("{}", session_id) if isinstance(value, str) and value.startswith("{}") else value
                 for value in arguments]  # fmt: skip
        answers.append([dict(row) for row in await connection.fetch(call, *given)])
    return answers


def without_names_and_times(answers: list[list[dict[str, Any]]], session_id: str) -> str:
    text = json.dumps(answers, default=str).replace(session_id, "{}")
    return re.sub(r"\d{4}-\d\d-\d\d[ T][0-9:.+]+", "<time>", text)


async def columns(connection: Connection, calls: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Names and types of what each call returns, in order: clients take rows apart by either."""
    return {call: [(a.name, a.type.name) for a in (await connection.prepare(call)).get_attributes()] for call in calls}


async def rows(connection: Connection) -> dict[str, list[Any]]:
    """All that is stored."""
    tables = ("sessions", "messages", "usage_records", "added_tool_calls")
    return {
        table: [
            json.loads(row[0])
            for row in await connection.fetch(f"select to_jsonb(t)::text from chatledger.{table} as t order by t::text")
        ]
        for table in tables
    }


@pytest.mark.parametrize("upgraded_by", ["python", "psql"])
@pytest.mark.parametrize("release", RELEASES)
async def test_upgrade(
    folder: Path, release: str, upgraded_by: str, empty_database_url: str, database_url: str, psql: Psql, bin_dir: Path
) -> None:
    calls = calls_of(folder, release)
    await psql((folder / f"{release}.sql").read_text("utf-8"), empty_database_url)
    connection = await asyncpg.connect(empty_database_url)
    lived = await run(connection, calls, LIFE, "old-session")
    read = await run(connection, calls, READS, "old-session")
    stored, returned = await rows(connection), await columns(connection, calls)
    assert all(stored.values())

    if upgraded_by == "python":
        await migrate(connection)
    else:
        await psql(f"\\i '{sql_folder() / 'install.sql'}'", empty_database_url)

    # The same schema as a fresh install's, with its privileges.
    assert await dump(bin_dir, empty_database_url) == await dump(bin_dir, database_url)
    # Everything is there as it was; new columns may have come.
    for table, before in stored.items():
        after = (await rows(connection))[table]
        assert [{key: row[key] for key in old} for row, old in zip(after, before, strict=True)] == before
    assert await connection.fetch("select * from chatledger.verify_session()") == []
    # The client of then gets its answers, of what is stored and to what it writes.
    assert await columns(connection, calls) == returned
    assert await run(connection, calls, READS, "old-session") == read
    again = await run(connection, calls, LIFE, "new-session")
    assert without_names_and_times(again, "new-session") == without_names_and_times(lived, "old-session")
    await connection.close()


async def test_an_upgrade_goes_on_under_the_writers(folder: Path, empty_database_url: str, psql: Psql) -> None:
    """Who writes and reads while it runs gets the old functions or the new ones, and no error."""
    calls = calls_of(folder, RELEASES[0])
    await psql((folder / f"{RELEASES[0]}.sql").read_text("utf-8"), empty_database_url)
    connections = [await asyncpg.connect(empty_database_url) for _ in range(4)]
    done = asyncio.Event()

    async def write(connection: Connection, writer: int) -> int:
        lives = 0
        while not done.is_set() or lives == 0:
            await run(connection, calls, [*LIFE, *READS], f"{writer}-{lives}")
            lives += 1
        return lives

    async def upgrade() -> None:
        try:
            await migrate(connections[-1])
        finally:
            done.set()

    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(connections[:-1]):
            group.create_task(write(connection, number))
        group.create_task(upgrade())
    assert await connections[-1].fetch("select * from chatledger.verify_session()") == []
    for connection in connections:
        await connection.close()


@pytest.mark.parametrize("release", RELEASES)
def test_every_call_of_then_is_made_here(folder: Path, release: str) -> None:
    made = {function for function, _ in [*LIFE, *READS]} | {"status"} | LEASES
    assert {match[1] for call in calls_of(folder, release) if (match := re.search(r"\.(\w+)\(", call))} == made
