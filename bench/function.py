"""append_messages alone, through pgbench: against one prepared statement that does what a bare append has to."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
from rich.progress import track

from bench.appends import TEXT
from bench.medians import Medians
from bench.results import keep

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.embedded import EmbeddedServers

TITLE = "The function alone"
FLOOR, OURS = "floor", "append_messages"
SIZES, CLIENTS = (1, 10), (1, 16)
CREATE_SESSIONS = """
    select chatledger.create_session(name || n)
    from unnest('{pgbench,floor}'::text[]) as name, generate_series(1, 200) as n
"""


def what(size: int, clients: int) -> str:
    return f"{size} {'message' if size == 1 else 'messages'}, {clients} {'client' if clients == 1 else 'clients'}"


def floor(size: int) -> str:
    ids = ", ".join(f"{_id(n)}" for n in range(size))
    rows = f"values ({ids}, 'user', :text::text, 1)"
    if size > 1:
        rows = f"select * from unnest(array[{ids}], array[{_repeated(chr(39) + 'user' + chr(39), size)}], "
        rows += f"array[{_repeated(':text::text', size)}]) with ordinality"
    return f"""
        with session as (
            update chatledger.sessions
            set next_sequence = next_sequence + {size}, version = version + 1, updated_at = clock_timestamp()
            where id = 'floor' || :session::text
            returning id, next_sequence - {size} as first, updated_at
        )
        insert into chatledger.messages (session_id, sequence, message_id, role, content, version, created_at)
        select session.id, first + position::integer - 1, message_id, role, content, 1, updated_at
        from session, ({rows}) as input (message_id, role, content, position)
    """


def ours(size: int) -> str:
    messages = ", ".join(
        f"""('{{"message_id": "' || {_id(n)} || '", "role": "user", "content": "' || :text::text || '"}}')::jsonb"""
        for n in range(size)
    )
    return f"select * from chatledger.append_messages('pgbench' || :session::text, array[{messages}])"


def _id(n: int) -> str:
    return f":run::text || :client_id::text || '-' || :n::text || '-{n}'"


def _repeated(value: str, size: int) -> str:
    return ", ".join([value] * size)


async def measure(servers: EmbeddedServers, rounds: int, server: str, console: Console) -> None:
    """Run both in turn, so many rounds, and keep the medians."""
    connection = await asyncpg.connect(servers.database_url)
    await connection.execute(CREATE_SESSIONS)
    await connection.close()
    microseconds = Medians()
    with tempfile.TemporaryDirectory() as folder:
        for _ in track(range(rounds), "pgbench", console=console):
            for clients in CLIENTS:
                for size in SIZES:
                    for way, statement in ((FLOOR, floor(size)), (OURS, ours(size))):
                        per_second = run(servers, statement, clients, Path(folder, "script.sql"))
                        microseconds.add(what(size, clients), way, 1e6 / per_second)
    keep(TITLE, "µs an append", microseconds.by_what(), server, console)


def run(servers: EmbeddedServers, statement: str, clients: int, script: Path) -> float:
    """Return the appends a second that pgbench got through."""
    one_line = " ".join(statement.split())
    script.write_text(f"\\set session random(1, 200)\n\\set n :n + 1\n{one_line};\n")
    host = parse_qs(urlsplit(servers.database_url).query)["host"][0]
    variables = {"n": "0", "run": f"r{uuid4().hex}-", "text": TEXT}
    output = subprocess.run(
        [
            servers.bin_dir / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={clients}", "--time=2",
            *(f"--define={name}={value}" for name, value in variables.items()), f"--file={script}",
            f"--host={host}", "--username=chatledger", "postgres",
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return float(next(line.split()[2] for line in output.splitlines() if line.startswith("tps")))
