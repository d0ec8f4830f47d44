"""The program's commands, as processes: output, exit codes, JSON for scripts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chatledger import ChatLedger, ChatMessage
from chatledger.postgres.migrations import sql_folder
from tests.helpers.program import run, start
from tests.helpers.sql import Psql


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder for embedded servers, where their user can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-up-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def converse(ledger: ChatLedger, session_id: str = "s1") -> None:
    await ledger.create_session(session_id, user_id="u1", title="Trip to [Oslo]")
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "[red]"}'}}
    await ledger.append_messages(
        session_id,
        [
            ChatMessage(role="user", content="[bold]where to?"),
            ChatMessage(role="assistant", tool_calls=[call]),
            ChatMessage(role="tool", tool_call_id="c1", content=[{"type": "text", "text": "Oslo"}]),
        ],
    )


async def test_migrate_says_what_it_would_do_and_does_it_once(empty_database_url: str, psql: Psql) -> None:
    dry = await run(empty_database_url, "migrate", "--dry-run")
    assert (dry.code, "0001_ledger would be applied" in dry.errors) == (0, True)
    script = await run(empty_database_url, "migrate", "--print-sql")
    assert "create table chatledger.sessions" in script.output
    assert await psql("select to_regclass('chatledger.sessions') is null", empty_database_url) == "t\n"

    assert "0001_ledger applied" in (await run(empty_database_url, "migrate")).errors
    again = await run(empty_database_url, "migrate")
    assert (again.code, "no migration is missing" in again.errors) == (0, True)


async def test_a_dry_run_leaves_the_embedded_database_alone(data_dir: Path) -> None:
    for _ in range(2):
        dry = await run(None, "migrate", "--dry-run", CHATLEDGER_DATA_DIR=str(data_dir))
        assert (dry.code, "0001_ledger would be applied" in dry.errors) == (0, True)
    assert "0001_ledger applied" in (await run(None, "migrate", CHATLEDGER_DATA_DIR=str(data_dir))).errors


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["list"], {"CHATLEDGER_POOL_SIZE": "hunter2"}, 2, "CHATLEDGER_POOL_SIZE: Input should be a valid integer"),
        (["list"], {"CHATLEDGER_REDIS_URL": "http://:hunter2@host"}, 3, "redis_url is not a Redis URL"),
        (["purge", "--older-than", "9999999999d"], {}, 2, "longer than time goes back"),
    ],
)
async def test_what_cannot_be_read_is_an_error_of_a_line(
    database_url: str, arguments: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    ended = await run(database_url, *arguments, **environment)
    assert (ended.code, ended.output) == (code, "")
    assert message in ended.errors
    assert "Traceback" not in ended.errors
    assert "hunter2" not in ended.errors


async def test_list_and_show(ledger: ChatLedger, database_url: str) -> None:
    await converse(ledger)
    listed = await run(database_url, "list", "--user", "u1")
    assert listed.code == 0
    assert "Trip to [Oslo]" in listed.output
    shown = await run(database_url, "show", "s1")
    for text in ("[bold]where to?", "search(", "[red]", "Oslo", "Trip to [Oslo]"):
        assert text in shown.output
    assert "where to?" not in (await run(database_url, "show", "s1", "--last", "1")).output


async def test_what_people_wrote_gives_no_orders_to_the_terminal(ledger: ChatLedger, database_url: str) -> None:
    order = "\x1b]0;title\x07\x9b2J\r"
    session = await ledger.create_session(f"s{order}", user_id=f"u{order}", title=f"t{order}")
    call = {"id": "c1", "function": {"name": f"f{order}", "arguments": order}}
    answer = ChatMessage(role="assistant", content=[{"type": "text", "text": order}], refusal=order, tool_calls=[call])
    await ledger.append_messages(session.session_id, [ChatMessage(role="user", content=order, name=order), answer])
    for arguments in (("list",), ("show", session.session_id), ("show", f"none{order}")):
        ended = await run(database_url, *arguments)
        assert not set(ended.output + ended.errors) & set(order) - set("]0;title2J")
        assert r"\x1b]0;" in ended.output + ended.errors


async def test_json_is_for_scripts(ledger: ChatLedger, database_url: str) -> None:
    await converse(ledger)
    [line] = (await run(database_url, "list", "--json")).output.splitlines()
    assert json.loads(line)["session_id"] == "s1"
    shown = json.loads((await run(database_url, "show", "s1", "--json")).output)
    assert [m["role"] for m in shown["messages"]] == ["user", "assistant", "tool"]
    assert json.loads((await run(database_url, "status", "--json")).output)["release"]


@pytest.mark.parametrize("command", ["show", "follow"])
async def test_a_session_that_is_not_there(database_url: str, command: str) -> None:
    ended = await run(database_url, command, "nope")
    assert (ended.code, ended.output) == (1, "")
    assert '"nope" not found' in ended.errors


async def test_follow_prints_what_is_there_and_what_comes(ledger: ChatLedger, database_url: str) -> None:
    await converse(ledger)
    following = await start(database_url, "follow", "s1", "--after", "0", "--json")
    assert following.stdout is not None

    async def line() -> Any:
        return json.loads(await asyncio.wait_for(following.stdout.readline(), 30))  # type: ignore[union-attr]

    assert [(await line())["sequence"] for _ in range(2)] == [1, 2]
    await ledger.append_messages("s1", [ChatMessage(role="assistant", content="[bold]Oslo it is")])
    assert (await line())["message"]["content"] == "[bold]Oslo it is"
    await ledger.update_session("s1", title="Oslo")
    assert (await line())["session"]["title"] == "Oslo"
    await ledger.truncate_session("s1", 2)
    assert [(event["kind"], event["sequence"]) for event in [await line()]] == [("truncated", 2)]
    await ledger.delete_session("s1")
    assert (await line())["kind"] == "deleted"
    assert (await following.wait(), await following.stdout.read()) == (0, b"")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_follow_ends_cleanly_on_ctrl_c(ledger: ChatLedger, database_url: str, signum: signal.Signals) -> None:
    await converse(ledger)
    following = await start(database_url, "follow", "s1")
    assert following.stdout is not None
    printed = b""
    while b"Oslo" not in printed:
        printed += await asyncio.wait_for(following.stdout.readline(), 30)
    following.send_signal(signum)
    _, printed_errors = await following.communicate()
    assert (following.returncode, printed_errors) == (0, b"")
    assert "[bold]where to?" in printed.decode()


async def test_follow_shows_events_for_people(ledger: ChatLedger, database_url: str) -> None:
    await converse(ledger)
    following = await start(database_url, "follow", "s1")
    assert following.stdout is not None
    while b"Oslo" not in await asyncio.wait_for(following.stdout.readline(), 30):
        pass
    await ledger.update_session("s1", title="[red]Oslo")
    await ledger.truncate_session("s1", 2)
    await ledger.delete_session("s1")
    output, _ = await following.communicate()
    assert following.returncode == 0
    assert "the session was deleted" in output.decode()


async def test_verify_finds_what_is_wrong(
    ledger: ChatLedger, database_url: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    await converse(ledger)
    assert (await run(database_url, "verify")).code == 0
    await connection.execute("delete from chatledger.messages where sequence = 1")
    ended = await run(database_url, "verify", "s1", "--json")
    assert ended.code == 1
    assert json.loads(ended.output.splitlines()[0])["guarantee"] == "G1"


async def test_import_names_bad_lines_and_tells_by_its_exit_code(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"session_id": "s1", "messages": [{"role": "user"}]}\nnonsense\n')
    ended = await run(database_url, "import", str(file), "--json")
    assert ended.code == 1
    assert "line 2: not JSON" in ended.errors
    report = json.loads(ended.output)
    assert (report["conversations"], report["appended"]) == (1, 1)
    assert report["refused"][0]["line"] == 2
    assert (await run(database_url, "import", str(tmp_path / "none.jsonl"))).code == 2


async def test_purge_asks_unless_told(ledger: ChatLedger, database_url: str) -> None:
    await converse(ledger)
    assert (await run(database_url, "purge", "--older-than", "soon", "--yes")).code == 2
    kept = await run(database_url, "purge", "--older-than", "30d", "--yes")
    assert "0 sessions removed" in kept.errors
    assert "1 sessions removed" in (await run(database_url, "purge", "--older-than", "0s", "--yes")).errors


async def test_a_server_that_is_not_there_is_a_line_not_a_traceback() -> None:
    ended = await run("postgresql://nobody@/none?host=/nowhere", "status", CHATLEDGER_RETRY_DEADLINE="0.1")
    assert ended.code == 3
    assert ended.errors.startswith("error: the database did not answer")
    assert "Traceback" not in ended.errors


async def test_a_database_without_a_ledger_says_what_to_do(empty_database_url: str) -> None:
    ended = await run(empty_database_url, "list")
    assert (ended.code, "chatledger migrate" in ended.errors) == (3, True)


async def test_up_prints_the_url_and_ends_on_a_signal(data_dir: Path, bin_dir: Path) -> None:
    process = await start(None, "up", CHATLEDGER_DATA_DIR=str(data_dir))
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    # Another process shares the server, and psql finds it by that URL.
    assert (await run(None, "status", "--json", CHATLEDGER_DATA_DIR=str(data_dir))).code == 0
    answer = subprocess.run(
        [bin_dir / "psql", "-XAtc", "select chatledger.version()", url], capture_output=True, check=True
    )
    assert answer.stdout.strip()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_the_wheel_migrates_outside_the_tree(empty_database_url: str, tmp_path: Path) -> None:
    root = sql_folder().parent
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=root, check=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = "import chatledger, sys; sys.argv[:] = ['chatledger', 'migrate']; print(chatledger.__file__);"
    ended = subprocess.run(
        [sys.executable, "-c", script + "from chatledger.cli import main; main()"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "CHATLEDGER_DATABASE_URL": empty_database_url},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "installed") in ended.stdout
    assert "0001_ledger applied" in ended.stderr
