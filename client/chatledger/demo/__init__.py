"""The demo: writers of three kinds in one conversation, one of them killed on its way; then the check."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from chatledger.demo import check, screen
from chatledger.demo.progress import Progress
from chatledger.demo.writers import KILLED_AFTER, Target, make_writers, write_all
from chatledger.ledger import ChatLedger
from chatledger.postgres.connections import without_password


async def run_demo(
    ledger: ChatLedger, database_url: str, psql: Path | None, console: Console, *, embedded: bool = False
) -> bool:
    """Run the demo; return whether everything that the ledger promises held.

    Args:
        ledger: Open, on a migrated database.
        database_url: Of the same database, for the writers in other processes.
        psql: The program; None: the demo does without it, and says so.
        console: Where to show it. No terminal: only how each part ended.
        embedded: The database is the embedded one, which ends with this program.

    Leaves its session in the ledger, to be looked at.

    Raises:
        ChatLedgerError: The ledger could not be used at all.
    """
    target = Target(database_url, f"demo-{secrets.token_hex(3)}", "demo-user")
    await ledger.create_session(target.session_id, user_id=target.user_id, title="Many writers, one conversation")
    held = await show_writers(ledger, target, psql, console)
    console.print(screen.heading("To go on"), highlight=False)
    console.print(screen.commands(_commands(target, psql, embedded)), soft_wrap=True)
    return held


async def show_writers(ledger: ChatLedger, target: Target, psql: Path | None, console: Console) -> bool:
    all_progress = make_writers(with_psql=psql is not None)
    async with screen.shown_live(console, lambda: screen.writing(target.session_id, all_progress, console.width)):
        await write_all(all_progress, ledger, target, psql)
    if psql is None:
        console.print("There is no psql here: its two writers were left out.", highlight=False)

    findings = await _check(ledger, target, all_progress)
    console.print(screen.heading("The check" + "".join(_killed(progress) for progress in all_progress)))
    console.print(screen.check(findings))
    return not any(finding.problems for finding in findings)


def _killed(progress: Progress) -> str:
    if not progress.killed:
        return ""
    return f" ({progress.writer.name}: killed in batch {KILLED_AFTER + 1}, then a new one sent all again)"


async def _check(ledger: ChatLedger, target: Target, all_progress: list[Progress]) -> list[check.Finding]:
    return check.findings(
        [progress.writer for progress in all_progress],
        [answer for progress in all_progress for answer in progress.answers],
        await ledger.get_messages(target.session_id, user_id=target.user_id, limit=None),
        await ledger.verify_session(target.session_id),
    )


def _commands(target: Target, psql: Path | None, embedded: bool) -> list[tuple[str, str]]:
    # The embedded psql is on nobody's path.
    program = "psql" if psql is None or shutil.which("psql") else shlex.quote(str(psql))
    url = shlex.quote(without_password(target.database_url))  # psql asks for it; the screen may be a log
    query = f"select sequence, role, text, calls from chatledger.transcript where session_id = '{target.session_id}'"
    chatledger = _this_program()
    lines = [
        ("the conversation", f"{chatledger} show {target.session_id}"),
        ("check everything that is stored", f"{chatledger} verify"),
    ]
    if embedded:
        lines.append(("keep the embedded database running, in a terminal of its own", f"{chatledger} up"))
    where = "and look at it with psql" if embedded else "look at it with psql"
    lines.append((where, f'{program} {url} -c "{query} order by sequence"'))
    return lines


def _this_program() -> str:
    """Return what runs this program again: `make demo` runs it from an environment that is on nobody's path."""
    started = Path(sys.argv[0])
    if shutil.which("chatledger") or started.name != "chatledger":
        return "chatledger"
    return shlex.quote(str(started))
