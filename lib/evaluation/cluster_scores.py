"""How well clusters agree with classes, and how clear they are by themselves."""

from typing import Optional

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import silhouette_score
from torch import Tensor

SAMPLE = 4000
"""Rows that the silhouette is computed on: it compares each with every other."""


def contingency(assignments: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> np.ndarray:
    """(K, C) int64: how many rows of each cluster are of each class."""
    table = np.zeros((clusters, classes), dtype=np.int64)
    np.add.at(table, (assignments, labels), 1)
    return table


def matched(table: np.ndarray) -> tuple[float, dict[int, int]]:
    """The best accuracy of a one-to-one matching of clusters and classes (Kuhn 1955), and the class of each cluster.

    Where there are more clusters than classes some get none and their rows count as wrong; and the other way round.

    Args:
        table: (K, C), from `contingency`.
    """
    rows, columns = linear_sum_assignment(table, maximize=True)
    return table[rows, columns].sum() / table.sum(), dict(zip(rows.tolist(), columns.tolist()))


def silhouette(features: Tensor, assignments: np.ndarray, seed: int) -> Optional[float]:
    """The mean silhouette (Rousseeuw 1987) by cosine distance, of `SAMPLE` rows at most, drawn by the seed.

    None where there are not two clusters, or no two rows in one.

    Args:
        features: (N, D) unit rows on the CPU.
        assignments: (N,) int64.
    """
    rows = np.arange(len(assignments))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.RandomState(seed % 2**32).permutation(len(rows))[:SAMPLE])
    chosen = assignments[rows]
    if not 2 <= len(np.unique(chosen)) < len(rows):
        return None
    return float(silhouette_score(features[rows].numpy(), chosen, metric="cosine"))
