"""What each part of append_messages costs: through pgbench, against the function without that part."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from rich.progress import track

from bench import function
from bench.medians import Medians, rotated
from bench.results import keep
from chatledger import migrate
from chatledger.postgres.migrations import sql_folder

if TYPE_CHECKING:
    from rich.console import Console

    from chatledger.embedded import EmbeddedServers

TITLE = "What each part of an append costs"
_CHECK = (" and chatledger_internal.is_storable(input.message)", "")
_CONFLICT = ("on conflict do nothing", "")
_RECEIPTS = ("            return next;\n", "")
_KEYS = ("chatledger_internal.message_columns(", "chatledger_internal.known_columns(")
VARIANTS = {
    "without the check that each is a message": (_CHECK,),
    "without `on conflict`: a retry fails": (_CONFLICT,),
    "without receipts": (_RECEIPTS,),
    "without keys that have no column": (_KEYS,),
    "without all these but the receipts": (_CHECK, _CONFLICT, _KEYS),
}


def known_columns() -> str:
    """message_columns without the keys that have no column."""
    text = _sql("message_columns").replace("message_columns", "known_columns")
    [keys] = re.findall(r"case\s+-- Nulls.*?end(?=\n\$function\$)", text, re.DOTALL)
    return _replaced(text, keys, "null::jsonb")


def variant(name: str, parts: tuple[tuple[str, str], ...]) -> str:
    """append_messages under another name and with parts replaced."""
    text = _sql("append_messages")
    for part, instead in parts:
        text = _replaced(text, part, instead)
    return text.replace("append_messages", name)


def _sql(name: str) -> str:
    return next((sql_folder() / "functions").rglob(f"{name}.sql")).read_text()


def _replaced(text: str, part: str, instead: str) -> str:
    assert text.count(part) == 1, f"{part!r} is there {text.count(part)} times"
    return text.replace(part, instead)


async def measure(servers: EmbeddedServers, rounds: int, console: Console) -> None:
    """Run all in turn, so many rounds, on a server without fsync, which would hide the parts, and keep the medians."""
    names = {way: f"append_{number}" for number, way in enumerate(VARIANTS)}
    connection = await asyncpg.connect(servers.database_url)
    await migrate(connection)
    await connection.execute(function.CREATE_SESSIONS)
    await connection.execute(known_columns())
    for way, parts in VARIANTS.items():
        await connection.execute(variant(names[way], parts))
    server = await connection.fetchval("show server_version")
    await connection.close()

    microseconds = Medians()
    with tempfile.TemporaryDirectory() as folder:
        for size in function.SIZES:
            ways = {function.FLOOR: function.floor(size), function.OURS: function.ours(size)}
            ways |= {way: function.ours(size).replace("append_messages", name) for way, name in names.items()}
            for number in track(range(rounds), f"parts of an append of {size}", console=console):
                for way, statement in rotated([*ways.items()], number):
                    per_second = function.run(servers, statement, 1, Path(folder, "script.sql"))
                    microseconds.add(function.what(size, 1), way, 1e6 / per_second)
    keep(TITLE, "µs an append", microseconds.by_what(), server, console)
