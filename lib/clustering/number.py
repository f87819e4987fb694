"""How many clusters there are, from the features alone.

In the graph of nearest neighbours a class is a region with many edges inside and few to the outside. Small groups are
merged, the most linked first. The number of clusters is the largest K at which no two of K groups have a linkage of
`THRESHOLD` or more: roughly, the share of a group's edges that lead to one other group.

`python3 -m benchmarks.cluster_number --sessions FOLDER` measures this against the eigengap, silhouettes, prediction
strength and other criteria; the constants below were chosen with it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.clustering.graph import neighbour_graph
from lib.clustering.kmeans import spherical_kmeans
from lib.clustering.merging import merge_linkages
from lib.seeding import derive, generator

NEIGHBOURS = 10
GROUP = 5
"""Mean rows in one of the groups that the merging starts from, by k-means; more where they would be too many."""
MOST_GROUPS = 1000
GROUPS_IN_CLUSTER = 5
"""The most clusters looked for are so many times fewer than the groups: of single groups nothing can be said."""
THRESHOLD = 0.05
"""Of the linkage. With 0.045 to 0.055 all networks of the benchmark's digits were within one of the truth."""
CLEARLY = 2.0
"""So many times the threshold, the linkage says that K is too large; what comes after is not looked at."""
SPAN = 1.5
"""The confidence looks at thresholds from `THRESHOLD` / SPAN to `THRESHOLD` * SPAN."""
RUNS = 5
SAMPLE = 10_000
"""Rows of one run, drawn anew for each where there are more. A class needs some dozens among them to be seen."""


@dataclass(frozen=True)
class NumberOfClusters:
    """The number found and what speaks for it.

    Attributes:
        clusters: the number found.
        candidates: every K that was looked at, from 2 on; empty for less than two rows.
        criterion: its value for each of them; the largest K with a value below `threshold` is the
            number, 1 if none; K after a value of twice the threshold do not count.
        criterion_name: what it is, for the axis of a plot.
        threshold: what the criterion is held against.
        confidence: the share of the checks that give the same number, 0 to 1; a check is one run with one threshold.
        explanation: the confidence in words.
    """

    clusters: int
    candidates: tuple[int, ...]
    criterion: tuple[float, ...]
    criterion_name: str
    threshold: float
    confidence: float
    explanation: str


def choose_number(features: Tensor, seed: int = 0, runs: int = RUNS) -> NumberOfClusters:
    """The number of clusters. The same features and seed give the same answer.

    Args:
        features: (N, D) float32 unit rows, N at least 1.
        seed: of the samples and of k-means.
        runs: samples and first groups; the median of their linkages counts.
    """
    if len(features) < 2:
        return NumberOfClusters(1, (), (), "linkage", THRESHOLD, 1.0, "there is a single image")
    found = [_linkages(features, seed, run) for run in range(runs)]
    length = min(map(len, found))
    linkages = np.stack([run[:length] for run in found])  # (runs, K - 2)
    criterion = np.median(linkages, axis=0)
    clusters = _largest_below(criterion, THRESHOLD)
    thresholds = THRESHOLD * np.geomspace(1 / SPAN, SPAN, 11)
    answers = [_largest_below(run, threshold) for run in linkages for threshold in thresholds]
    agreeing = sum(answer == clusters for answer in answers) / len(answers)
    others = sorted({answer for answer in answers if answer != clusters})
    explanation = f"{100 * agreeing:.0f} % of {len(answers)} checks say {clusters}"
    if others:
        explanation += f", the others {others[0]}" + (f" to {others[-1]}" if len(others) > 1 else "")
    if clusters == length + 1:
        explanation += f"; more than {clusters} are not looked for among so few images"
    shown = min(length, max(20, 2 * clusters))
    return NumberOfClusters(
        clusters,
        tuple(range(2, shown + 2)),
        tuple(criterion[:shown].tolist()),
        "linkage of the closest two of K groups",
        THRESHOLD,
        agreeing,
        explanation,
    )


def _linkages(features: Tensor, seed: int, run: int) -> np.ndarray:
    """What `merge_linkages` says of a sample of the rows."""
    if len(features) > SAMPLE:
        order = torch.randperm(len(features), generator=generator(seed, "number of clusters", run))
        features = features[order[:SAMPLE].to(features.device)]
    count = len(features)
    groups = min(max(2, count // GROUP), MOST_GROUPS)
    first = spherical_kmeans(features, groups, derive(seed, "groups", run), restarts=1, iterations=15)
    linkages = merge_linkages(neighbour_graph(features, NEIGHBOURS), first.assignments.numpy())
    return linkages[: max(1, groups // GROUPS_IN_CLUSTER - 1)]


def _largest_below(linkages: np.ndarray, threshold: float) -> int:
    """The largest K, from 2 on, with a linkage below the threshold, before one is first above `CLEARLY` times that.

    1 if there is none. Among images without any clusters the linkage falls again for large K.
    """
    above = np.flatnonzero(linkages > CLEARLY * threshold)
    below = np.flatnonzero(linkages[: above[0] if len(above) else None] < threshold)
    return int(below[-1]) + 2 if len(below) else 1
