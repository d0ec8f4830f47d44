"""The ledger's schema as pg_dump writes it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg


async def dump(bin_dir: Path, url: str) -> str:
    """The schema with its privileges, and the migrations it has had."""
    process = await asyncio.create_subprocess_exec(
        bin_dir / "pg_dump",
        "--schema=chatledger",
        "--schema=chatledger_internal",
        "--schema-only",
        url,
        stdout=asyncio.subprocess.PIPE,
    )
    schema, _ = await process.communicate()
    assert process.returncode == 0
    connection = await asyncpg.connect(url)
    applied = await connection.fetch("select number, name, checksum from chatledger.migrations order by number")
    await connection.close()
    # pg_dump adds a random key to each dump.
    lines = [line for line in schema.decode().splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return "\n".join([*lines, *map(str, applied)])
