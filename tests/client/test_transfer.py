"""Conversations in and out: what went in comes out, however often and by however many."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from chatledger import ChatLedger, ChatMessage, MigrationError
from chatledger.transfer import export_sessions, import_lines
from tests.helpers.messages import call
from tests.helpers.sql import Psql

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def conversations() -> Path:
    """150 real conversations of a tool-using agent, which are not part of the repository."""
    given = os.environ.get("CHATLEDGER_TEST_CONVERSATIONS")
    found = [Path(given)] if given else list(ROOT.parent.glob("*/data/tau_airline.jsonl"))
    if not found:
        pytest.skip(
            "needs tau_airline.jsonl, the conversations of tau-bench: set CHATLEDGER_TEST_CONVERSATIONS to its path"
        )
    return found[0]


def lines(*conversations: Any) -> list[bytes]:
    return [json.dumps(conversation).encode() + b"\n" for conversation in conversations]


async def exported(ledger: ChatLedger) -> dict[str, Any]:
    """What an export gives, by session."""
    conversations = [json.loads(line) async for line in export_sessions(ledger)]
    by_session = {conversation["session_id"]: conversation for conversation in conversations}
    assert len(by_session) == len(conversations)
    return by_session


async def test_real_conversations_by_eight_importers_at_once(
    database_url: str, conversations: Path, psql: Psql
) -> None:
    async def run_import() -> int:
        process = await program(database_url, "import", str(conversations))
        await process.communicate()
        return process.returncode or 0

    assert await asyncio.gather(*(run_import() for _ in range(8))) == [0] * 8
    assert await psql("select count(*) from chatledger.session_overview") == "150\n"
    assert await psql("select count(*) from chatledger.messages") == "3916\n"

    process = await program(database_url, "export")
    output, _ = await process.communicate()
    came_out = {line["session_id"]: line for line in map(json.loads, output.splitlines())}
    went_in = {line["session_id"]: line for line in map(json.loads, conversations.read_bytes().splitlines())}
    assert came_out == went_in

    process = await program(database_url, "verify")
    output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"")


async def program(database_url: str, *arguments: str) -> asyncio.subprocess.Process:
    from tests.helpers.program import start

    return await start(database_url, *arguments)


async def test_an_import_that_was_killed_is_run_again(ledger: ChatLedger, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    sent = [
        {"session_id": f"s{n}", "messages": [{"role": "user", "content": f"{n}-{i}"} for i in range(20)]}
        for n in range(400)
    ]
    file.write_bytes(b"".join(lines(*sent)))
    process = await program(database_url, "import", str(file))
    while not (await ledger.list_sessions(None, limit=1)).sessions:
        await asyncio.sleep(0)
    process.kill()
    await process.wait()
    stored = len(await exported(ledger))
    assert 0 < stored < 400, "the import was not killed mid-way"

    report = await import_lines(ledger, lines(*sent))
    assert (report.conversations, report.refused) == (400, [])
    assert report.already_there >= 20 * stored
    assert await exported(ledger) == {conversation["session_id"]: conversation for conversation in sent}


async def test_whatever_went_in_comes_out(ledger: ChatLedger) -> None:
    sent = {
        "session_id": "s1",
        "user_id": "u1",
        "title": "All of it",
        "status": "done",
        "metadata": {"a": 1},
        "tools": [{"type": "function"}],
        "messages": [
            {"role": "developer", "content": "be brief", "name": "dev"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call("c1")], "annotations": []},
            {"role": "assistant", "tool_calls": [call("c2")], "function_call": None},
            {"role": "tool", "tool_call_id": "c1", "content": "", "created_at": "yesterday", "sequence": 99},
            {"role": "assistant", "content": "bye", "message_id": "mine", "metadata": {"x": None}, "duration_ms": 5},
        ],
    }
    await import_lines(ledger, lines(sent))
    assert (await exported(ledger)) == {"s1": sent}


async def test_what_was_written_through_the_client_comes_out_and_in_again(ledger: ChatLedger) -> None:
    session = await ledger.create_session(user_id="u1")
    sent = [ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="hello")]
    await ledger.append_messages(session.session_id, sent)
    once = [line async for line in export_sessions(ledger)]
    report = await import_lines(ledger, [line.encode() for line in once])
    assert (report.appended, report.already_there, report.refused) == (0, 2, [])


async def test_a_conversation_that_grew_gets_its_new_messages(ledger: ChatLedger) -> None:
    messages = [{"role": "user", "content": str(n)} for n in range(3)]
    await import_lines(ledger, lines({"session_id": "s1", "messages": messages[:2]}))
    report = await import_lines(ledger, lines({"session_id": "s1", "messages": messages}))
    assert (report.appended, report.already_there) == (1, 2)


async def test_a_line_without_a_session_id_is_imported_once(ledger: ChatLedger) -> None:
    line = lines({"messages": [{"role": "user", "content": "hi"}]})
    await import_lines(ledger, line)
    await import_lines(ledger, line)
    assert len(await exported(ledger)) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", '"messages" must be a list'),
        (b'{"messages": {}}', '"messages" must be a list'),
        (b'{"session_id": 7, "messages": []}', '"session_id" must be a string'),
        (b'{"session_id": "", "messages": []}', "session_id must have 1 to 255 characters"),
        (b'{"session_id": "x", "metadata": 7, "messages": []}', '"metadata" must be an object'),
        (b'{"session_id": "x", "messages": [{"role": "user"}, {"role": "?"}]}', "message 1: role is unknown"),
        (b'{"session_id": "x", "messages": [7]}', "message 0: is a int"),
        (
            b'{"session_id": "x", "messages": [{"role": "user", "metadata": {"n": NaN}}]}',
            "message 0: metadata is not JSON",
        ),
        (b'{"session_id": "theirs", "user_id": "u2", "messages": []}', '"theirs" not found'),
    ],
)
async def test_a_bad_line_is_named_and_leaves_nothing_behind(ledger: ChatLedger, bad: bytes, reason: str) -> None:
    await ledger.create_session("theirs", user_id="u1")
    good = {"session_id": "good", "messages": [{"role": "user", "content": "hi"}]}
    report = await import_lines(ledger, [b"\n", bad + b"\n", *lines(good)])
    [(number, why)] = report.refused
    assert number == 2
    assert reason in why
    assert set(await exported(ledger)) == {"good", "theirs"}


async def test_a_changed_message_is_a_bad_line(ledger: ChatLedger) -> None:
    await import_lines(ledger, lines({"session_id": "s1", "messages": [{"role": "user", "content": "one"}]}))
    report = await import_lines(ledger, lines({"session_id": "s1", "messages": [{"role": "user", "content": "two"}]}))
    [(_, why)] = report.refused
    assert "with another body" in why


async def test_export_of_one_session_and_of_one_user(ledger: ChatLedger) -> None:
    for n in range(3):
        await ledger.create_session(f"s{n}", user_id=f"u{n % 2}")
    assert [json.loads(line)["session_id"] async for line in export_sessions(ledger, ["s1"])] == ["s1"]
    mine = {json.loads(line)["session_id"] async for line in export_sessions(ledger, user_id="u0")}
    assert mine == {"s0", "s2"}


@pytest.mark.parametrize("theirs", [True, {"session_id": "x"}, {"messages": []}])
async def test_metadata_that_look_like_ours_stay_the_callers(ledger: ChatLedger, theirs: Any) -> None:
    metadata = {"import": theirs, "chatledger.import": theirs}
    await ledger.create_session("s1", metadata=metadata)
    line = (await exported(ledger))["s1"]
    assert line == {"session_id": "s1", "metadata": metadata, "messages": []}


async def test_an_import_into_a_database_without_a_ledger_says_so_once(empty_database_url: str) -> None:
    async with ChatLedger(empty_database_url) as ledger:
        with pytest.raises(MigrationError):
            await import_lines(ledger, lines({"session_id": "s1", "messages": []}))
