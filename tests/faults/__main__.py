"""Many rounds of faults at random moments: ``make torture``. Exits with 1 when the ledger broke its word."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .faults import mixed
from .rounds import Rig, Round, play, rig

console = Console()
app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[str, typer.Option(help="Repeats a run: its faults and what the writers choose to do.")] = "1",
    first: Annotated[int, typer.Option(help="The round to begin with.")] = 0,
) -> None:
    """Play rounds, show what happened, and exit with 1 on a violation."""
    sys.exit(asyncio.run(torture(seed, range(first, first + rounds))))


async def torture(seed: str, numbers: range) -> int:
    began = time.monotonic()
    answers: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    rounds = violations = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with rig() as servers:
        console.print(await _versions(servers), highlight=False)
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("no violation", total=len(numbers))
            for number in numbers:
                name = f"{seed}-{number}"
                try:
                    played = await play(servers, name, mixed(servers, name))
                except asyncio.CancelledError:
                    break  # Ctrl-C: tell how far it came
                except Exception as error:  # it hung, most likely
                    console.print(
                        f"[red]round {name}[/red] did not come to its end: {error!r} {getattr(error, '__notes__', '')}"
                    )
                    violations += 1
                    break
                rounds += 1
                answers.update(call.outcome for call in played.calls)
                kinds.update(call.kind for call in played.calls)
                faults += played.faults
                if played.problems:
                    violations += len(played.problems)
                    _show(played)
                progress.update(
                    task, advance=1, description=f"{violations} violations" if violations else "no violation"
                )
    console.print(_summary(rounds, answers, kinds, faults, violations))
    console.print(f"{time.monotonic() - began:.0f} seconds, seed {seed}", highlight=False)
    return 1 if violations else 0


def _show(played: Round) -> None:
    file = Path(tempfile.mkdtemp(prefix="chatledger-torture-")) / f"{played.seed}.json"
    history = {"problems": played.problems, "calls": played.calls, "stored": played.stored}
    file.write_text(json.dumps(history, indent=1, default=asdict))
    console.print(f"[red]round {played.seed}[/red], with {', '.join(played.faults)}; its history: {file}")
    for problem in played.problems[:10]:
        console.print(f"  {problem}", markup=False, highlight=False)


def _summary(rounds: int, answers: Counter[str], kinds: Counter[str], faults: Counter[str], violations: int) -> Table:
    table = Table("what", "how often", show_header=False)
    table.add_row("rounds", f"{rounds:,}")
    for title, counted in (("calls", answers), ("by kind", kinds), ("faults", faults)):
        table.add_section()
        table.add_row(title, f"{counted.total():,}")
        for name, count in counted.most_common():
            table.add_row(f"  {name}", f"{count:,}")
    table.add_section()
    table.add_row("violations", f"[{'red' if violations else 'green'}]{violations:,}")
    return table


async def _versions(servers: Rig) -> str:
    async with servers.postgres.admin() as admin:
        postgres = await admin.fetchval("show server_version")
    valkey = servers.valkey.info("server").get("valkey_version", "?")
    bouncer = "no pgbouncer"
    if servers.pgbouncer is not None:
        program = str(servers.pgbouncer.program)
        bouncer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    return f"Postgres {postgres}, Valkey {valkey}, {bouncer}"


if __name__ == "__main__":
    app()
