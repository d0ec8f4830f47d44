"""Measured values by what was done and in which way, and their medians; and whose turn it is."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TypeVar

Way = TypeVar("Way")


def rotated(ways: list[Way], number: int) -> list[Way]:
    """The ways in the order of this round: each comes first in turn, the first one in round 0."""
    first = number % len(ways)
    return ways[first:] + ways[:first]


class Medians:
    """Collects values; gives medians, in the order in which they were first added."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, what: str, way: str, value: float) -> None:
        self._values[what][way].append(value)

    def by_what(self) -> dict[str, dict[str, float]]:
        return {
            what: {way: statistics.median(values) for way, values in ways.items()}
            for what, ways in self._values.items()
        }
