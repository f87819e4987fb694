"""Fair timings on a noisy machine: contenders take turns, and their medians within one run are compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Optional


def seconds(function: Callable[[], object], synchronise: Callable[[], None] = lambda: None) -> float:
    """Wall-clock time of one call; `synchronise` waits for the device."""
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def take_turns(
    contenders: dict[str, Callable[[], object]], repeats: int, synchronise: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds of each, after a warm-up of each."""
    for function in contenders.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds(function, synchronise))
    return {name: median(values) for name, values in times.items()}


ONCE = "timed once"
"""The note of a row that takes too long for several turns."""


@dataclass(frozen=True)
class Row:
    """One line of the report. Times in seconds; `textbook` and `limit` are None where there is none.

    `memory`: bytes beyond the inputs at the peak, where that is measured.
    """

    what: str
    ours: float
    textbook: Optional[float] = None
    limit: Optional[float] = None
    note: str = ""
    memory: Optional[int] = None

    @property
    def speedup(self) -> Optional[float]:
        """How many times faster than the textbook version."""
        return None if self.textbook is None else self.textbook / self.ours

    @property
    def of_limit(self) -> Optional[float]:
        """Our time as a multiple of the limit's."""
        return None if self.limit is None else self.ours / self.limit
