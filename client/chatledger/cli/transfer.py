"""Commands that move conversations: import, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from chatledger.cli.common import FOUND_WRONG, Json, app, errors, printable, run
from chatledger.ledger import ChatLedger
from chatledger.transfer import export_sessions, import_lines


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="JSON lines.")],
    as_json: Json = False,
) -> None:
    """Store conversations in OpenAI's chat format, a JSON object with "messages" a line.

    Can be stopped and run again: what is stored already stays as it is. A line that cannot be stored is named, with the
    reason, and the exit code is 1; the others get in.
    """

    async def work(ledger: ChatLedger) -> int | None:
        columns = (TextColumn("importing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress, file.open("rb") as lines:
            task = progress.add_task("import", total=file.stat().st_size)
            report = await import_lines(ledger, lines, lambda line: progress.advance(task, len(line)))
        for number, reason in report.refused:
            errors.print(f"line {number}: {printable(reason)}", markup=False, highlight=False, soft_wrap=True)
        if as_json:
            refused = [{"line": number, "reason": reason} for number, reason in report.refused]
            typer.echo(json.dumps({**vars(report), "refused": refused}))
        else:
            errors.print(
                f"{report.conversations:,} conversations: {report.appended:,} messages stored, "
                f"{report.already_there:,} were there already; {len(report.refused):,} lines refused",
                highlight=False,
            )
        return FOUND_WRONG if report.refused else None

    run(work)


@app.command("export")
def export_command(
    session_ids: Annotated[list[str] | None, typer.Argument(help="Without one, every session.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
) -> None:
    """Write conversations to standard output, a line each, in the form that import reads."""

    async def work(ledger: ChatLedger) -> None:
        async for line in export_sessions(ledger, session_ids or (), user_id=user):
            sys.stdout.write(line + "\n")

    run(work)
