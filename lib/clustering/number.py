"""How many clusters there are, from the features alone."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib.clustering.graph import neighbour_graph, smallest_eigenvalues

NEIGHBOURS = 10
MOST = 50


@dataclass(frozen=True)
class NumberOfClusters:
    """The number found and what speaks for it.

    Attributes:
        clusters: the number found.
        candidates: every K that was looked at.
        criterion: its value for each of them; the largest wins.
        criterion_name: what it is, for the axis of a plot.
        confidence: 0 (a guess) to 1 (no other number comes near).
        explanation: the confidence in words.
    """

    clusters: int
    candidates: tuple[int, ...]
    criterion: tuple[float, ...]
    criterion_name: str
    confidence: float
    explanation: str


def choose_number(features: Tensor, seed: int = 0, most: int = MOST) -> NumberOfClusters:
    """The K after which the eigenvalues of the neighbour graph's Laplacian rise most.

    Args:
        features: (N, D) float32 unit rows, N at least 2.
        seed: of everything random in it.
        most: the largest K looked at.
    """
    most = min(most, len(features) - 1)
    values = smallest_eigenvalues(neighbour_graph(features, NEIGHBOURS), min(most + 1, len(features)), seed)
    gaps = np.diff(values)
    best = int(gaps.argmax())
    others = np.delete(gaps, best)
    confidence = float(1 - max(others.max(), 0) / gaps[best]) if len(others) and gaps[best] > 0 else 0.0
    return NumberOfClusters(
        best + 1,
        tuple(range(1, len(gaps) + 1)),
        tuple(gaps.tolist()),
        "eigengap",
        confidence,
        f"the next best number has {100 * (1 - confidence):.0f} % of its eigengap",
    )
