"""Means over seeds, differences paired by seed, and the verdict on a statement."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

from scipy import stats

HOLDS, OPPOSITE, UNDECIDED = "holds", "opposite", "undecided"
LEVEL = 0.95
LEAST = 3
"""Fewest seeds for a verdict: two with equal differences by chance have an interval of width 0."""

Interval = tuple[float, float]


class Mean(NamedTuple):
    """A mean with its t interval, which is None for a single value."""

    mean: float
    interval: Optional[Interval]
    n: int


def mean_of(values: Sequence[float]) -> Optional[Mean]:
    """The mean of some values, with the interval mean ± t(n - 1) s / sqrt(n) at 95 %; None without values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
    return Mean(mean, (mean - half, mean + half), n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Optional[Mean]:
    """The mean difference, first minus second, over the seeds that both have."""
    return mean_of([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def verdict(difference: Optional[Mean]) -> str:
    """Whether the statement `difference > 0` holds, its opposite holds, or the seeds show neither."""
    if difference is None or difference.interval is None or difference.n < LEAST:
        return UNDECIDED
    low, high = difference.interval
    if low > 0:
        return HOLDS
    return OPPOSITE if high < 0 else UNDECIDED
