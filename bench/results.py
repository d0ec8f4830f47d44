"""What was measured, kept as JSON: the page and the plots are made from it, and can be made again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

FILE = Path(__file__).with_name("results.json")

Rows = dict[str, dict[str, float]]
"""What was done, in which way, and the median of what it cost. The others are compared with the first way."""


class Section(TypedDict):
    """One run of one measurement."""

    unit: str
    where: str
    rows: Rows
    remarks: list[str]


def kept() -> dict[str, Section]:
    sections: dict[str, Section] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return sections


def keep(title: str, unit: str, rows: Rows, server: str, console: Console, remarks: Sequence[str] = ()) -> None:
    """Print a section, and keep it in place of what an earlier run kept."""
    table = Table("what", "way", unit, "against the first", title=title)
    for what, ways in rows.items():
        for way, value in ways.items():
            table.add_row(what, way, number(value), f"{next(iter(ways.values())) / value:.2f}" if value else "")
        table.add_section()
    console.print(table)
    for remark in remarks:
        console.print(remark, highlight=False)
    section = Section(unit=unit, where=where(server), rows=rows, remarks=list(remarks))
    FILE.write_text(json.dumps(kept() | {title: section}, indent=2, ensure_ascii=False) + "\n")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def where(server: str) -> str:
    """Machine, versions and date, in a line."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {cpu}, {platform.system()} {platform.release()}, "
        f"PostgreSQL {server.split()[0]}, Python {platform.python_version()}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
