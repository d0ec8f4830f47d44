"""Writes docs/benchmarks.md and its plots from what was measured: ``python -m bench.page``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import appends, cache, flatness, function, lists, loads, notifications, plots
from bench.peers import PEERS, ROWS, TITLES
from bench.results import Section, kept, number

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Goal:
    """What a way should cost, in terms of the base way; without one, in the section's unit."""

    text: str
    section: str
    row: str
    way: str
    base: str | None = None
    speed_at_least: float | None = None
    cost_at_most: float | None = None

    def line(self, sections: dict[str, Section]) -> str | None:
        """A line of the page's table; None when it was not measured."""
        ways = sections[self.section]["rows"].get(self.row, {}) if self.section in sections else {}
        if self.way not in ways or (self.base is not None and self.base not in ways):
            return None
        base = ways[self.base] if self.base is not None else 1.0
        if self.speed_at_least is not None:
            value, goal = base / ways[self.way], f"≥ {self.speed_at_least:g}"
            reached = value >= self.speed_at_least
        else:
            assert self.cost_at_most is not None
            value, goal = ways[self.way] / base, f"≤ {self.cost_at_most:g}"
            reached = value <= self.cost_at_most
        return f"| {self.text} | {goal} | {value:.2f} | {'yes' if reached else 'no'} |"


def goals() -> list[Goal]:
    alone = [
        Goal(
            f"speed of `append_messages` alone, {function.what(size, clients)}, of the floor",
            function.TITLE, function.what(size, clients), function.OURS, function.FLOOR, speed_at_least=0.85,
        )
        for clients in function.CLIENTS
        for size in function.SIZES
    ]  # fmt: skip
    shortest, longest = f"{flatness.LENGTHS[0]:,}", f"{flatness.LENGTHS[-1]:,}"
    ours, floor, rival = "chatledger", "floor", "MAX + 1"
    return [
        Goal("speed of an append of 1 through the client, 200 sessions, 16 at once, of the floor",
             appends.TITLE, appends.ONE, ours, floor, speed_at_least=0.8),
        *alone,
        Goal("speed of appends to one session by 16 writers, of the floor",
             appends.TITLE, appends.HOT, ours, floor, speed_at_least=0.85),
        Goal("the same, of `MAX(sequence) + 1` with 5 retries",
             appends.TITLE, appends.HOT, ours, rival, speed_at_least=5),
        Goal("speed of an append with the cache on, of one without",
             appends.TITLE, appends.ONE, "chatledger, cache on", ours, speed_at_least=0.75),
        Goal(f"time of an append at {longest} messages in the session, of one at {shortest}",
             flatness.BY_LENGTH, flatness.ONE, longest, shortest, cost_at_most=1.1),
        Goal("its WAL", flatness.WAL_BY_LENGTH, flatness.ONE, longest, shortest, cost_at_most=1.1),
        Goal(f"time of an append to a ledger of {flatness.MESSAGES:,} messages, of one to an empty one",
             flatness.BY_SIZE, flatness.ONE, f"{flatness.MESSAGES:,} messages", "empty", cost_at_most=1.15),
        Goal("ms of the server for the first page of 10,000 sessions, of 1,000,000",
             lists.TITLE, lists.PAGE, lists.SPREAD, cost_at_most=2),
        *(
            Goal(f"time of a load of {what}, of the bare fetch of its rows",
                 loads.TITLE, what, loads.LOAD, loads.FETCH, cost_at_most=3)
            for what in (loads.TEXTS, loads.TURNS)
        ),
        Goal("Postgres' CPU of a read of 1,000 unchanged messages through the cache, of one without",
             cache.CPU_TITLE, cache.what(1_000, cache.UNCHANGED), cache.CACHED, cache.PLAIN, cost_at_most=0.2),
        Goal("its time",
             cache.TITLE, cache.what(1_000, cache.UNCHANGED), cache.CACHED, cache.PLAIN, cost_at_most=1),
        Goal("time from a commit to the `follow` event elsewhere, p50, of a bare LISTEN's",
             notifications.LATENCY, notifications.P50, notifications.FOLLOW, notifications.BARE_LISTEN,
             cost_at_most=2),
        Goal("speed of 64 writers nobody follows, of the same without the feature",
             notifications.WRITERS, notifications.ONE, notifications.NOBODY, notifications.WITHOUT,
             speed_at_least=0.95),
    ]  # fmt: skip


def beside_others(title: str, row: str, sections: dict[str, Section]) -> str | None:
    """A line of the page's table: against the fastest of the other stores."""
    by_hand = {peer.name for peer in PEERS if peer.by_hand}
    measured = sections[title]["rows"][row] if title in sections else {}
    ways = {way: value for way, value in measured.items() if way not in by_hand}
    ours = ways.pop("chatledger", None)
    if ours is None or not ways:
        return None
    fastest = min(ways, key=lambda way: ways[way])
    reached = "yes" if ways[fastest] >= ours else "no"
    return f"| {title}: speed, of the fastest other store ({fastest}) | ≥ 1 | {ways[fastest] / ours:.2f} | {reached} |"


def table(section: Section) -> list[str]:
    lines = [f"| | | {section['unit']} | against the first |", "|---|---|--:|--:|"]
    for what, ways in section["rows"].items():
        first = next(iter(ways.values()))
        lines += [
            f"| {what if place == 0 else ''} | {way} | {number(value)} | {first / value:.2f} |"
            for place, (way, value) in enumerate(ways.items())
        ]
    return lines


def text(sections: dict[str, Section]) -> str:
    """The page."""
    introduction, limits = (Path(__file__).with_name(name).read_text() for name in ("introduction.md", "limits.md"))
    lines = [introduction, "| | goal | measured | reached |", "|---|--:|--:|---|"]
    reached = [goal.line(sections) for goal in goals()]
    reached += [beside_others(title, ROWS[what], sections) for what, title in TITLES.items()]
    lines += filter(None, reached)
    lines += [""]
    lines += [f"![{plot.title}](images/{plot.file})" for plot in plots.PLOTS if plot.title in sections]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", f"{section['where']}.", "", *table(section)]
        if section["remarks"]:
            lines += ["", *section["remarks"]]
    return "\n".join([*lines, "", limits])


def write() -> None:
    """Write the page and draw the plots."""
    sections = kept()
    plots.draw(sections, DOCS / "images")
    Path(DOCS, "benchmarks.md").write_text(text(sections))


if __name__ == "__main__":
    write()
