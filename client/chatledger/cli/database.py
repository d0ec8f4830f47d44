"""Commands on the database as a whole: migrate, up, demo, status, purge."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from chatledger import embedded
from chatledger.cli.common import Json, app, errors, output, run, settings
from chatledger.ledger import ChatLedger
from chatledger.postgres.connections import connect, without_password
from chatledger.postgres.migrations import Migration, migrate, pending, plain_script

_AGE = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


@app.command("migrate")
def migrate_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which migrations are missing.")] = False,
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Only print what would be run.")] = False,
) -> None:
    """Bring the database to this release: missing migrations, then all functions and views, in one transaction."""

    async def work(database_url: str) -> None:
        connection = await connect(database_url)
        try:
            if print_sql:
                typer.echo(plain_script(await pending(connection)))
            elif dry_run:
                _say(await pending(connection), "would be applied")
            else:
                _say(await migrate(connection), "applied")
                errors.print("functions and views are this release's", highlight=False)
        finally:
            await connection.close()

    if (database_url := settings().database_url) is not None:
        asyncio.run(work(database_url))
        return
    # Not by opening a ledger, which would migrate before we look.
    with embedded.start(settings().data_dir) as servers:
        asyncio.run(work(servers.database_url))


def _say(migrations: list[Migration], what: str) -> None:
    for migration in migrations:
        errors.print(f"{migration.name} {what}", highlight=False)
    if not migrations:
        errors.print("no migration is missing", highlight=False)


@app.command()
def up() -> None:
    """Start the embedded database, print its URL on a line of its own, and keep it running until Ctrl-C."""

    async def work(ledger: ChatLedger) -> None:
        typer.echo(without_password(str(ledger.database_url)))
        if settings().database_url is not None:
            errors.print("this is your own server; there is nothing to start", highlight=False)
            return
        line = f"{_psql() or 'psql'} {shlex.quote(str(ledger.database_url))}"
        errors.print(f"look inside with: {line}\nrunning; Ctrl-C ends it", highlight=False, soft_wrap=True)
        ended = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, ended.set)
        await ended.wait()

    run(work)


@app.command()
def demo() -> None:
    """Show several writers of three kinds append to one conversation at once; then check it."""
    from chatledger.demo import run_demo

    async def work(ledger: ChatLedger) -> int:
        ours = settings().database_url is None
        held = await run_demo(ledger, str(ledger.database_url), _psql(), output, embedded=ours)
        return 0 if held else 1

    run(work)


def _psql() -> Path | None:
    if settings().database_url is None:
        from chatledger.embedded.binaries import postgres_bin_dir

        return postgres_bin_dir(None) / "psql"
    found = shutil.which("psql")
    return Path(found) if found else None


@app.command()
def status(as_json: Json = False) -> None:
    """Health at a glance."""

    async def work(ledger: ChatLedger) -> None:
        items = await ledger.status()
        if as_json:
            typer.echo(json.dumps(items))
            return
        table = Table(show_header=False, box=None)
        for item, value in items.items():
            table.add_row(item, value or "-")
        output.print(table)

    run(work)


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([dhms])", text)
    if match is None:
        raise typer.BadParameter("expected a number and a unit, such as 180d, 12h, 30m or 45s")
    try:
        return timedelta(**{_AGE[match[2]]: int(match[1])})
    except OverflowError:
        raise typer.BadParameter("is longer than time goes back") from None


@app.command()
def purge(
    older_than: Annotated[timedelta, typer.Option(parser=_age, metavar="AGE", help="Such as 180d or 12h.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the sessions that nobody changed for so long, for good."""
    if not yes:
        typer.confirm(f"Remove every session unchanged for {older_than}, with its messages?", abort=True, err=True)

    async def work(ledger: ChatLedger) -> None:
        purged = 0
        with errors.status("purging") as progress:
            while batch := await ledger.purge_sessions(older_than):
                purged += batch
                progress.update(f"purging: {purged:,} sessions gone")
        errors.print(f"{purged:,} sessions removed", highlight=False)

    run(work)
