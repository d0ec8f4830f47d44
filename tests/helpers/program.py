"""Runs the program in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import NamedTuple


class Ended(NamedTuple):
    """How a run ended, and what it printed."""

    code: int
    output: str
    errors: str


async def start(database_url: str | None, *arguments: str, **environment: str) -> Process:
    """Start ``chatledger`` with these arguments."""
    if database_url is not None:
        environment["CHATLEDGER_DATABASE_URL"] = database_url
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chatledger", *arguments, stdout=PIPE, stderr=PIPE, env=os.environ | environment
    )


async def run(database_url: str | None, *arguments: str, **environment: str) -> Ended:
    """Run ``chatledger`` to its end."""
    process = await start(database_url, *arguments, **environment)
    output, errors = await process.communicate()
    return Ended(process.returncode or 0, output.decode(), errors.decode())
