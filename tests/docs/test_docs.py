"""The documents run: each block of code in them, from top to bottom, giving the output that they show.

A ``text`` block right below a block of code is that block's output; a block without one only must not fail.

``sql``, ``psql``   typed into psql, as it is. ```sql second``: in a terminal of that name, so that a document can
                    have several sessions at once. ```sql second waits``: the block waits for a lock; it goes on below.
                    In a ``psql`` block with prompts, the lines with a prompt are typed, the others are the output.
``python``          a script of its own.
``sh``              run in the documents that install the ledger themselves; elsewhere it may install or start things.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from chatledger import errors

ROOT = Path(__file__).parents[2]
SQL_REFERENCE = ROOT / "docs" / "sql.md"
INSTALLING = [SQL_REFERENCE, ROOT / "docs" / "operations.md", ROOT / "docs" / "tutorial.md"]
OTHERS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path not in INSTALLING]

END_OF_OUTPUT = "--- end of output ---"
PROMPT = re.compile(r"^\w+[=(*'\"$!^-][*!?]?[#>] ?")

# What differs from run to run, from machine to machine, between releases of Postgres.
VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d(:\d\d)?"), "<time>"),
    (re.compile(r"-?\d\d:\d\d:\d\d(\.\d+)?"), "<duration>"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b\d+ (bytes|kB|MB|GB)\b"), "<size>"),
    (re.compile(r"\b([tf])/\d{16}/"), r"\1/<time>/"),
    (re.compile(r"^\d+\.\d+\.\d+$"), "<release>"),
    (re.compile(r"\bchatledger_[0-9a-f]{32}\b"), "<channel>"),
    (re.compile(r"\b\d{7,9}\b"), "<fence>"),
    (re.compile(r"process with PID \d+"), "process with PID <pid>"),
    (
        re.compile(
            r"^(release|server|sessions_estimate|messages_estimate|size_bytes|longest_transaction_seconds) \|.*"
        ),
        r"\1 | <varies>",
    ),
]
VARYING_COLUMNS = {"pid", "hot_share", "dead_rows", "last_vacuum"}


@pytest.fixture(scope="session", autouse=True)
def openai() -> Iterator[None]:
    """Stand in for OpenAI: documents find it in their environment."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.openai_server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert server.stdout is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.stdout.readline().strip())
        patch.setenv("OPENAI_API_KEY", "none")
        yield
    server.communicate()


@dataclass(frozen=True)
class Block:
    """A block of code, and the output that the document shows for it."""

    path: Path
    line: int
    language: str
    flags: tuple[str, ...]
    code: str
    shown: str | None

    def check(self, output: str) -> None:
        """Fail unless this is the output that the document shows."""
        place = f"{self.path.name}:{self.line}"
        if self.shown is None:
            assert not re.search(r"^(ERROR|FATAL):", output, re.MULTILINE), f"{place}\n{self.code}\n{output}"
            return
        expected, actual = normalised(self.shown), normalised(output)
        difference = "\n".join(difflib.unified_diff(expected, actual, "shown", "real", lineterm="", n=100))
        assert expected == actual, f"{place}\n{self.code}\n{difference}\n\n{output}"


def blocks(path: Path) -> list[Block]:
    """Return a document's blocks of code, in order."""
    fence = re.compile(r"^```(\w*)([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = path.read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in fence.finditer(text):
        language, flags, code = match[1], tuple(match[2].split()), match[3]
        line = text.count("\n", 0, match.start()) + 1
        if language == "text" and found and not text[end : match.start()].strip():
            last = found.pop()
            found.append(Block(path, last.line, last.language, last.flags, last.code, code))
        else:
            shown = None
            if language == "psql" and any(PROMPT.match(each) for each in code.splitlines()):
                shown = "\n".join(each for each in code.splitlines() if not PROMPT.match(each))
                code = "\n".join(PROMPT.sub("", each) for each in code.splitlines() if PROMPT.match(each))
            found.append(Block(path, line, language, flags, code, shown))
        end = match.end()
    return found


def normalised(output: str) -> list[str]:
    """Return the lines of an output without what varies, nor the widths of columns that follow from it."""
    lines: list[str] = []
    varying: list[int] = []
    for text in output.splitlines():
        for pattern, stand_in in VARYING:
            text = pattern.sub(stand_in, " ".join(text.split()))
        cells = [cell.strip() for cell in text.split("|")]
        if text and lines and not set(text) - set("-+"):  # the rule below the names of the columns
            text = "--"
            varying = [index for index, name in enumerate(lines[-1].split(" | ")) if name in VARYING_COLUMNS]
        elif re.fullmatch(r"\(\d+ rows?\)", text):
            varying = []
        elif len(cells) > max(varying, default=len(cells)):
            text = " | ".join("<varies>" if index in varying else cell for index, cell in enumerate(cells))
        if text:
            lines.append(text)
    return lines


class Terminal:
    """A psql that somebody types into."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["psql", "-X"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._unread: list[Block] = []

    def type(self, block: Block) -> None:
        assert self._process.stdin is not None
        self._unread.append(block)
        self._process.stdin.write(f"{block.code}\n\\echo {END_OF_OUTPUT}\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Wait for the output of all that was typed, and compare it with what is shown."""
        assert self._process.stdout is not None
        while self._unread:
            output: list[str] = []
            for line in self._process.stdout:
                if line.strip() == END_OF_OUTPUT:
                    break
                output.append(line)
            self._unread.pop(0).check("".join(output))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Reader:
    """Somebody who follows a document with a fresh database."""

    def __init__(self, url: str, bin_dir: Path, folder: Path) -> None:
        server = conninfo_to_dict(url)
        self._url = url
        self._folder = folder
        self._terminals: dict[str, Terminal] = {}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {
            "CHATLEDGER_DATABASE_URL": url,
            "PATH": f"{folder / 'bin'}:{bin_dir}:{os.environ['PATH']}",
            "PGCLIENTENCODING": "UTF8",
            "PGDATABASE": str(server["dbname"]),
            "PGHOST": str(server["host"]),
            "PGOPTIONS": "-c statement_timeout=30s",  # so that a document which hangs fails
            "PGUSER": str(server["user"]),
            "PYTHONIOENCODING": "UTF-8",
            "PYTHONPATH": str(ROOT / "client"),
        }
        (folder / "db").symlink_to(ROOT / "db")
        (folder / "bin").mkdir()
        program = folder / "bin" / "chatledger"
        main = "import sys; from chatledger.cli import main; sys.exit(main())"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(main)} "$@"\n')
        program.chmod(0o755)

    def follow(self, path: Path) -> None:
        """Do all that the document says, and check that it happens as it says."""
        for block in blocks(path):
            if block.language in ("sql", "psql"):
                self._type(block)
            elif block.language == "python":
                self._run(block, [sys.executable, "-c", block.code])
            elif block.language == "sh" and path in INSTALLING:
                self._run(block, ["sh", "-e", "-c", block.code])
        for terminal in self._terminals.values():
            terminal.check()

    def _type(self, block: Block) -> None:
        name = block.flags[0] if block.flags else ""
        if name not in self._terminals:
            self._terminals[name] = Terminal(self._environment)
        self._terminals[name].type(block)
        if "waits" in block.flags:
            self._await_waiting()
        else:
            self._terminals[name].check()

    def _await_waiting(self) -> None:
        waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        deadline = time.monotonic() + 30
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not connection.execute(waiting).rowcount:
                assert time.monotonic() < deadline, "nobody waits for a lock"

    def _run(self, block: Block, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        place = f"{block.path.name}:{block.line}"
        assert done.returncode == 0, f"{place}\n{block.code}\n{done.stdout}"
        block.check(done.stdout)

    def close(self) -> None:
        for terminal in self._terminals.values():
            terminal.close()


@contextmanager
def reading(path: Path, url: str, bin_dir: Path, folder: Path) -> Iterator[Reader]:
    """Give a reader; afterwards drop the roles that the document makes, which belong to the whole server."""
    reader = Reader(url, bin_dir, folder)
    try:
        yield reader
    finally:
        reader.close()
        made = {role for block in blocks(path) for role in re.findall(r"(?i)\bcreate (?:role|user) (\w+)", block.code)}
        with psycopg.connect(url, autocommit=True) as connection:
            for role in made:
                if connection.execute("select from pg_roles where rolname = %s", (role,)).rowcount:
                    connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)))


@pytest.mark.parametrize("path", INSTALLING, ids=lambda path: str(path.name))
def test_a_document_that_starts_with_an_empty_database_runs(
    path: Path, empty_database_url: str, bin_dir: Path, tmp_path: Path
) -> None:
    with reading(path, empty_database_url, bin_dir, tmp_path) as reader:
        reader.follow(path)


@pytest.mark.parametrize("path", [path for path in OTHERS if path.exists()], ids=lambda path: str(path.name))
def test_a_document_runs(path: Path, database_url: str, bin_dir: Path, tmp_path: Path) -> None:
    with reading(path, database_url, bin_dir, tmp_path) as reader:
        reader.follow(path)


def sections() -> dict[str, str]:
    """Return the sections of the SQL reference by their headings."""
    parts = re.split(r"^#{2,} (.*)$", SQL_REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_public_function_has_a_section_with_its_arguments(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        public = connection.execute(
            r"""
            select p.proname,
                coalesce(p.proargnames[1 : p.pronargs], '{}')::text[]
            from pg_proc as p
            where p.pronamespace = 'chatledger'::regnamespace
            """,
            (),
        ).fetchall()
    documented = {}
    for name, text in sections().items():
        if signature := re.search(rf"`{re.escape(name)}\(([^`]*)\)`", text):
            documented[name] = re.findall(r"\bp_\w+", signature[1])
    assert documented == dict(public)


def test_every_view_has_a_section(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        views = connection.execute("select viewname from pg_views where schemaname = 'chatledger'").fetchall()
    assert {name for (name,) in views} <= set(sections())


def test_every_sqlstate_is_in_the_table() -> None:
    sources = [Path(errors.__file__), *(ROOT / "db" / "functions").rglob("*.sql")]
    raised = {state for path in sources for state in re.findall(r"\bCL\d{3}\b", path.read_text("utf-8"))}
    listed = set(re.findall(r"^\| `(CL\d{3})` \|", SQL_REFERENCE.read_text("utf-8"), re.MULTILINE))
    assert raised <= listed


@pytest.mark.parametrize("path", INSTALLING, ids=lambda path: str(path.name))
def test_outputs_are_shown_and_blocks_closed(path: Path) -> None:
    """A fence that is misspelt would take its block out of the test."""
    text = path.read_text("utf-8")
    found = blocks(path)
    assert {block.language for block in found} <= {"sql", "sh", "python", "json", "ini"}
    shown = sum(block.shown is not None for block in found)
    assert len(found) + shown == len(re.findall(r"^```\w", text, re.MULTILINE))
    assert shown > 5


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("m1 |  0 | 2026-01-01 10:00:00+00 | t", "m1 | 0 | 2026-12-31 23:59:59.123456+02 | t", True),
        ("m1 | 0 | 2026-01-01 10:00:00+00 | t", "m1 | 1 | 2026-01-01 10:00:00+00 | t", False),
        (" pid | n \n-----+---\n 812 | 1\n", "  pid  | n \n-------+---\n 71234 | 1\n", True),
        (" pid | n \n-----+---\n 812 | 1\n", "  pid  | n \n-------+---\n 71234 | 2\n", False),
        (" count \n-----\n 812\n", "  count  \n-------\n 71234\n", False),
        ("ERROR:  no\nHINT:  a", "ERROR:  no", False),
    ],
)
def test_only_what_varies_is_overlooked(shown: str, real: str, same: bool) -> None:
    assert (normalised(shown) == normalised(real)) is same


def test_a_wrong_document_fails(tmp_path: Path, database_url: str, bin_dir: Path) -> None:
    path = tmp_path / "wrong.md"
    path.write_text("```sql\nselect 1 as a;\n```\n```text\n a\n---\n 2\n(1 row)\n```\n")
    with reading(path, database_url, bin_dir, tmp_path) as reader, pytest.raises(AssertionError, match=r"-2\n +\+1"):
        reader.follow(path)
