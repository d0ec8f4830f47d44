"""One glance at what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import appends, cache, flatness, notifications
from bench.peers import ROWS, TITLES
from bench.results import Section, number


@dataclass(frozen=True)
class Plot:
    """A chart of one row of a section: a bar a way."""

    title: str
    row: str
    file: str
    throughput: str | None = None
    """What comes a second, where that is drawn instead of the microseconds it takes."""


PLOTS = (
    Plot(TITLES["concurrent"], ROWS["concurrent"], "throughput_by_store.svg", "messages a second"),
    Plot(appends.TITLE, appends.ONE, "appends.svg", "appends a second"),
    Plot(flatness.BY_LENGTH, flatness.ONE, "latency_by_length.svg"),
    Plot(notifications.WRITERS, notifications.ONE, "notifications.svg", "appends a second"),
    Plot(cache.CPU_TITLE, cache.what(1_000, cache.UNCHANGED), "cache.svg"),
)


def draw(sections: dict[str, Section], folder: Path) -> None:
    """Draw each plot whose section was measured."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "chatledger", "font.size": 11}  # the same file for the same figures
    from matplotlib import pyplot

    folder.mkdir(exist_ok=True)
    for plot in PLOTS:
        ways = sections[plot.title]["rows"].get(plot.row) if plot.title in sections else None
        if not ways:
            continue
        unit = f"{sections[plot.title]['unit']} (less is better)"
        if plot.throughput is not None:
            ways = {way: 1e6 / cost for way, cost in ways.items()}
            unit = f"{plot.throughput} (more is better)"
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.35 * len(ways)), layout="constrained")
        # Where no way is named after us, all are ours.
        ours = [way for way in ways if "chatledger" in way] or list(ways)
        bars = axes.barh(list(ways), list(ways.values()), color=["C0" if way in ours else "0.7" for way in ways])
        axes.bar_label(bars, labels=[number(value) for value in ways.values()], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(f"{plot.title}: {plot.row}", fontsize=11, loc="left")
        axes.set_xlabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / plot.file, metadata={"Date": None})
        pyplot.close(figure)
