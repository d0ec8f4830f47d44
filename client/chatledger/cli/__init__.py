"""The program ``chatledger``.

Data goes to standard output, all else to standard error.
Exit codes: 0 all well; 1 something was refused or found wrong; 2 wrong usage; 3 it could not be done.
"""

from __future__ import annotations

import sys

import asyncpg
from pydantic import ValidationError
from rich.text import Text

from chatledger.cli import database, sessions, transfer  # noqa: F401 -- registers the commands
from chatledger.cli.common import FAILED, WRONG_USAGE, app, errors, printable
from chatledger.config import Settings
from chatledger.errors import ChatLedgerError

__all__ = ["app", "main"]


def main() -> None:
    """Run the program; errors are a line, not a traceback."""
    try:
        app()
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        for problem in error.errors():  # without the values: there may be a password in one
            variable = f"CHATLEDGER_{'_'.join(map(str, problem['loc'])).upper()}"
            _fail(f"{variable}: {problem['msg']}")
        sys.exit(WRONG_USAGE)
    except (ChatLedgerError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        _fail(str(error))
        sys.exit(FAILED)


def _fail(why: str) -> None:
    errors.print(Text.assemble(("error: ", "bold red"), printable(why)), soft_wrap=True)
