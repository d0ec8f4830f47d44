"""What the commands share: the application, the consoles, opening the ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer
from rich.console import Console

from chatledger.config import Settings
from chatledger.ledger import ChatLedger
from chatledger.version import __version__

FOUND_WRONG = 1
WRONG_USAGE = 2
FAILED = 3

app = typer.Typer(
    name="chatledger",
    help="A ledger of conversations in Postgres.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
output = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]
_settings: list[Settings] = []


def _print_version(wanted: bool) -> None:
    if wanted:
        output.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    database_url: Annotated[
        str | None,
        typer.Option(envvar="CHATLEDGER_DATABASE_URL", help="Without one, an embedded Postgres is used."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the release.")
    ] = False,
) -> None:
    """A ledger of conversations in Postgres."""
    _settings[:] = [Settings(database_url=database_url)] if database_url else [Settings()]


def printable(text: str) -> str:
    """Return text of somebody's for a terminal: control characters, which could give it orders, as they are written."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda control: f"\\x{ord(control[0]):02x}", text)


def settings() -> Settings:
    """Return the settings of this run."""
    return _settings[0]


def run(work: Callable[[ChatLedger], Coroutine[Any, Any, int | None]]) -> None:
    """Run a command on an open ledger; what it returns is the exit code."""

    async def with_ledger() -> int | None:
        async with ChatLedger(settings=settings()) as ledger:
            return await work(ledger)

    raise typer.Exit(asyncio.run(with_ledger()) or 0)
