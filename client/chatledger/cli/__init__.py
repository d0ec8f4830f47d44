"""The program ``chatledger``.

Data goes to standard output, all else to standard error.
Exit codes: 0 all well; 1 something was refused or found wrong; 2 wrong usage; 3 it could not be done.
"""

from __future__ import annotations

import sys

import asyncpg
from rich.text import Text

from chatledger.cli import bench, database, sessions, transfer  # noqa: F401  (each adds its commands)
from chatledger.cli.common import FAILED, app, errors, printable
from chatledger.errors import ChatLedgerError

__all__ = ["app", "main"]


def main() -> None:
    """Run the program; errors are a line, not a traceback."""
    try:
        app()
    except (ChatLedgerError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        errors.print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)
        sys.exit(FAILED)
