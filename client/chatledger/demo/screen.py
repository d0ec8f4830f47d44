"""What the demo shows, in Rich."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatledger.demo.check import Finding
from chatledger.demo.progress import Place, Progress

# Foreground and background both, so that they do not depend on the terminal's own colours. Okabe and Ito's palette,
# which the colour-blind can tell apart.
_CELLS = (
    "#000000 on #e69f00",
    "#000000 on #56b4e9",
    "#000000 on #009e73",
    "#000000 on #f0e442",
    "#ffffff on #0072b2",
    "#000000 on #d55e00",
    "#000000 on #cc79a7",
)
# Half-way tones, readable on dark and on light.
_GOOD, _BAD, _BUSY = "#009e73", "#d55e00", "#0087d7"
_STATES = {
    "waiting": "dim",
    "writing": _BUSY,
    "killed": f"bold {_BAD}",
    "retrying": f"bold {_BUSY}",
    "done": _GOOD,
    "failed": f"bold {_BAD}",
}
_WIDE = 115


@asynccontextmanager
async def shown_live(console: Console, picture: Callable[[], RenderableType]) -> AsyncIterator[None]:
    """Show a picture and keep it up to date; where there is no terminal, print it once at the end."""
    with Live(picture(), console=console, auto_refresh=False) as live:
        refresher = asyncio.create_task(_refresh(live, picture))
        try:
            yield
        finally:
            refresher.cancel()
            with suppress(asyncio.CancelledError):
                await refresher
            live.update(picture(), refresh=True)
    if not console.is_terminal:
        console.line()  # Live leaves the last line open there


async def _refresh(live: Live, picture: Callable[[], RenderableType]) -> None:
    while True:
        await asyncio.sleep(0.05)
        live.update(picture(), refresh=True)


def writing(session_id: str, all_progress: Sequence[Progress], width: int) -> RenderableType:
    """Return the picture of the writers at work and of the conversation so far."""
    errors = [Text(f"{p.writer.name}: {p.error}", _BAD) for p in all_progress if p.error is not None]
    return Group(
        heading(f"{len(all_progress)} writers append to one conversation at the same time"),
        _writers(all_progress, wide=width >= _WIDE),
        *errors,
        Text(f"\nThe conversation {session_id}: a cell a message, a letter where a batch begins"),
        _strip(all_progress),
    )


def heading(text: str) -> RenderableType:
    """Return a line that begins a part of the demo."""
    return Text(f"\n{text}", "bold")


def _writers(all_progress: Sequence[Progress], *, wide: bool) -> RenderableType:
    ranges = 5 if wide else 2
    table = _table(wide=wide)
    table.add_column("", min_width=3)
    table.add_column("writer", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("batches", justify="right", no_wrap=True)
    table.add_column("msgs", justify="right", no_wrap=True)
    # As wide as they get, so that the table does not jump about.
    table.add_column("last sequences", no_wrap=True, min_width=ranges * 9 - 2)
    table.add_column("stored\nbefore", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=8)
    for index, progress in enumerate(all_progress):
        table.add_row(
            Text(f" {_letter(index)} ", _cell_style(index)),
            progress.writer.name,
            progress.writer.kind,
            f"{progress.batches_done}/{len(progress.writer.batches)}",
            str(progress.messages_done),
            ", ".join(_range(answer) for answer in progress.answers[-ranges:]),
            str(progress.stored_before) if progress.killed else "",
            Text(progress.state, _STATES[progress.state]),
        )
    return table


def _strip(all_progress: Sequence[Progress]) -> Text:
    total = sum(len(progress.writer.messages) for progress in all_progress)
    # Of the full length from the start, so that nothing below it moves.
    cells = [("·", "dim")] * total
    for index, progress in enumerate(all_progress):
        for answer in progress.answers:
            for position, place in enumerate(answer):
                if place.sequence < total:  # only a broken ledger gives out more
                    cells[place.sequence] = (_letter(index) if position == 0 else "─", _cell_style(index))
    return Text.assemble(*cells, overflow="fold")


def check(findings: Sequence[Finding]) -> RenderableType:
    """Return the check, a line each with a tick or a cross."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for finding in findings:
        mark = Text("✗", _BAD) if finding.problems else Text("✓", _GOOD)
        table.add_row(mark, Text(finding.claim, "bold"), _fact(finding))
    return table


def _fact(finding: Finding) -> Text:
    if not finding.problems:
        return Text(finding.fact)
    shown, more = finding.problems[:3], len(finding.problems) - 3
    return Text("; ".join([*shown, *([f"and {more} more"] if more > 0 else [])]), _BAD)


def commands(lines: Sequence[tuple[str, str]]) -> RenderableType:
    """Return commands to copy, each below what it is for; too long ones are left to the terminal to wrap."""
    parts = (Text.assemble((f"  {purpose}\n", "dim"), f"    {command}") for purpose, command in lines)
    return Text("\n").join(parts)


def _table(*, wide: bool) -> Table:
    return Table(box=None, padding=(0, 3 if wide else 1, 0, 0), header_style="dim")


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _cell_style(index: int) -> str:
    return _CELLS[index % len(_CELLS)]


def _range(answer: Sequence[Place]) -> str:
    first, last = answer[0].sequence, answer[-1].sequence
    return str(first) if first == last else f"{first}\N{EN DASH}{last}"
