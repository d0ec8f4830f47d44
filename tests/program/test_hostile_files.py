"""Files that are not what they should be: each bad line is named, no line is stored in part, and the rest gets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatledger import ChatLedger
from chatledger.transfer import import_lines
from tests.helpers.program import run
from tests.helpers.properties import examples


def line(session_id: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": "h\u00e9llo"}, {"role": "assistant", "content": None}]
    return json.dumps({"session_id": session_id, "messages": messages} | more, ensure_ascii=False).encode()


async def test_a_file_of_all_that_goes_wrong(ledger: ChatLedger, database_url: str, tmp_path: Path) -> None:
    good = [
        b"\xef\xbb\xbf" + line("with a BOM") + b"\r\n",
        b"  " + line("with spaces and CRLF") + b" \r\n",
        line("large", note="x" * 500_000) + b"\n",
        line("the last line, without an end"),
    ]
    bad = [
        line("cut off")[:-9] + b"\n",
        line("not UTF-8").replace(b"\xc3\xa9", b"\xe9") + b"\n",
        "".join(map(chr, range(32, 300))).encode() + b"\n",
        line("UTF-16").decode().encode("utf-16") + b"\n",
        b"\0" * 1000 + b"\n",
        line("two")[:-1] + b"}{}\n",
        b"[" * 100_000 + b"\n",
        b'{"messages": [], "x": ' + b"[" * 500 + b"]" * 500 + b"}\n",
        b'{"messages": [], "x": ' + b"9" * 5000 + b"}\n",
        b'{"messages": [], "x": NaN}\n',
        b'{"messages": [{"role": "user", "\\ud800": NaN}]}\n',
        line("\x1b]0;a window's title\x07", user_id="u2") + b"\n",
    ]
    await ledger.create_session("\x1b]0;a window's title\x07", user_id="u1")
    file = tmp_path / "hostile.jsonl"
    file.write_bytes(b"".join([good[0], *bad, *good[1:]]))

    ended = await run(database_url, "import", str(file), "--json")

    assert ended.code == 1
    assert "Traceback" not in ended.errors
    assert r'session "\x1b]0;a window' in ended.errors
    report = json.loads(ended.output)
    # UTF-16 has a line feed's byte in its last character, so that it ends in the next line.
    assert (report["conversations"], report["appended"]) == (4, 8)
    assert {refused["line"] for refused in report["refused"]} >= set(range(2, 2 + len(bad)))
    stored = {session.session_id for session in (await ledger.list_sessions(None)).sessions}
    assert stored == {
        "\x1b]0;a window's title\x07",
        "with a BOM",
        "with spaces and CRLF",
        "large",
        "the last line, without an end",
    }


def damaged(text: bytes, start: int, length: int, junk: bytes) -> bytes:
    return (text[:start] + junk + text[start + length :]).replace(b"\n", b"")


hostile_lines = st.builds(
    damaged,
    st.builds(lambda: line(uuid4().hex, metadata={"a": [1, {"b": 2}]})),
    st.integers(0, 160),
    st.integers(0, 40),
    st.binary(max_size=4) | st.sampled_from([b'"', b"}", b"{", b"]", b"null", b"1e999", b"\\u0000", b"\\ud800", b","]),
)


@examples
@given(lines=st.lists(hostile_lines | st.binary(max_size=20).map(lambda junk: junk.replace(b"\n", b"")), max_size=6))
async def test_g10_each_line_is_stored_whole_or_refused(
    ledger: ChatLedger, connection: asyncpg.Connection[asyncpg.Record], lines: list[bytes]
) -> None:
    count = "select (select count(*) from chatledger.sessions), (select count(*) from chatledger.messages)"
    sessions, messages = await connection.fetchrow(count) or (0, 0)

    report = await import_lines(ledger, lines)

    assert report.conversations + len(report.refused) == sum(bool(text.strip()) for text in lines)
    assert {number for number, _ in report.refused} <= set(range(1, len(lines) + 1))
    sessions_now, messages_now = await connection.fetchrow(count) or (0, 0)
    assert messages_now - messages == report.appended
    assert report.conversations - len(lines) <= sessions_now - sessions <= report.conversations


@pytest.mark.parametrize("arguments", [("import",), ("import", "--json")])
async def test_a_role_that_may_not_write_is_told_in_a_line(
    connection: asyncpg.Connection[asyncpg.Record], database_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "some.jsonl"
    file.write_bytes(b"\n".join(line(f"s{number}") for number in range(20)))
    role = f"reader_{uuid4().hex}"
    await connection.execute(f"create role {role} login in role chatledger_reader")
    try:
        ended = await run(f"{database_url}&user={role}".replace("chatledger@", "@"), *arguments, str(file))
        assert ended.code == 3
        # rich before 14.3 ends the progress bar that it did not show with an empty line.
        assert ended.errors.lstrip("\n").startswith("error: permission denied for function")
        assert "Traceback" not in ended.errors
    finally:
        await connection.execute(f"drop role {role}")
