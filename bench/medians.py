"""Measured values by what was done and in which way, and their medians."""

from __future__ import annotations

import statistics
from collections import defaultdict


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
