"""The clusters of a round, one clustering for tables, TensorBoard, the report, --export and --embed; and their number.

The number comes from the features alone. In the graph of nearest neighbours a class is a region with many edges inside
and few to the outside. Small groups are merged, the most linked first. The number of clusters is the largest K at which
no two of K groups have a linkage of `THRESHOLD` or more: roughly, the share of a group's edges that lead to one other
group.

`python3 -m benchmarks.cluster_number --sessions FOLDER` measures this against the eigengap, silhouettes, prediction
strength and other criteria; the constants below were chosen with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from lib.clustering.kmeans import spherical_kmeans
from lib.config.option import AUTO
from lib.errors import UserError
from lib.search.exact import LARGEST_SAMPLE, nearest, sample_rows
from lib.seeding import derive, generator

FEWEST_IMAGES = 20
"""The fewest images for which a round finds clusters; with fewer their number is meaningless."""
ROWS_PER_CLUSTER = 50
"""k-means runs on an even sample of `LARGEST_SAMPLE` images, or of this many for each cluster if that is more."""
COUNTED = 2_000
"""Size of the even sample on which the number of clusters is found: with 5,000 it takes 30 s on a busy core."""

GRAPH_NEIGHBOURS = 10
ROWS_IN_GROUP = 5
"""Mean rows in one of the groups that the merging starts from, by k-means; more where they would be too many."""
MOST_GROUPS = 1000
GROUPS_IN_CLUSTER = 5
"""The largest K considered is the number of groups divided by this: clusters of fewer groups are noise."""
THRESHOLD = 0.05
"""Threshold of the linkage. With 0.045 to 0.055 all networks of the benchmark's digits were within one of the truth."""
CLEAR_FACTOR = 2.0
"""A linkage above this many times the threshold means that K is too large; larger K are ignored."""
SPAN = 1.5
"""The confidence covers thresholds from `THRESHOLD` / SPAN to `THRESHOLD` * SPAN."""
RUNS = 5
ROWS_IN_RUN = 10_000
"""Rows of one run; of more, each run draws a sample. A class is found if some dozens of its images are drawn."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """K clusters by their centres.

    Attributes:
        centres: (K, D) float32, unit rows on the CPU, those of the largest cluster first.
        asked: the value of --num-clusters: a number, or `auto`.
        explanation: how K was chosen, in words.
    """

    centres: Tensor
    asked: str
    explanation: str

    def assign(self, features: Tensor) -> Tensor:
        """(N,) int64, the cluster of each feature (N, D): that of the centre with the highest cosine."""
        _, indices = nearest(features.cpu(), self.centres, 1)
        return indices[:, 0]

    def sizes(self, features: Tensor) -> list[int]:
        """How many of the features (N, D) are in each cluster, without empty ones."""
        counts = torch.bincount(self.assign(features), minlength=len(self.centres))
        return counts[counts > 0].tolist()

    def described(self, features: Tensor) -> str:
        """The number of clusters, their sizes and how the number was chosen, as text for the log."""
        sizes = self.sizes(features)
        return f"{len(self.centres)}, of {min(sizes)} to {max(sizes)} training images; {self.explanation}"

    def state(self) -> dict[str, Any]:
        """The clusters as plain data for a checkpoint."""
        return {"centres": self.centres, "asked": self.asked, "explanation": self.explanation}


def check_number(number: str, images: int) -> None:
    """Check that --num-clusters does not exceed the number of images.

    Raises:
        UserError: there are more clusters than images.
    """
    if number != AUTO and int(number) > images:
        raise UserError(f"--num-clusters {number}: there are only {images} training images; lower it, or use auto")


def round_clusters(sample: Tensor, images: int, number: str, seed: int) -> Optional[Clusters]:
    """The clusters of a round that has ended; None if there are too few images. Takes seconds.

    Args:
        sample: (S, D) unit rows on the CPU, an even sample of the memory bank.
        images: N, the rows of the bank.
        number: as --num-clusters.
        seed: of all random draws.
    """
    needed = FEWEST_IMAGES if number == AUTO else min(images, ROWS_PER_CLUSTER * int(number))
    if len(sample) < needed or (number != AUTO and int(number) > len(sample)):
        return None
    return find_clusters(sample, number, seed)


def find_clusters(features: Tensor, number: str, seed: int) -> Clusters:
    """Clusters of the training images: a function of their features, the number, the seed and the number of threads.

    Args:
        features: (N, D) float32 unit rows on the CPU.
        number: how many, or `auto`, which `choose_number` determines.
        seed: of all random draws.

    Raises:
        UserError: there are more clusters than images.
    """
    check_number(number, len(features))
    if number != AUTO:
        count, explanation = int(number), "as many as --num-clusters asks for"
    elif len(features) <= 2:
        count, explanation = 1, f"{len(features)} images are too few for more than one cluster"
    else:
        found = choose_number(features[sample_rows(len(features), COUNTED)], seed)
        count, explanation = found.clusters, f"found by their {found.criterion_name}: {found.explanation}"
    rows = sample_rows(len(features), max(LARGEST_SAMPLE, ROWS_PER_CLUSTER * count))
    return Clusters(spherical_kmeans(features[rows], count, seed).centres, number, explanation)


def clusters_of(kept: Optional[Mapping[str, Any]], features: Tensor, number: str, seed: int) -> Clusters:
    """The clusters that a checkpoint keeps of the round it ends; those of `find_clusters` where it keeps none, or
    --num-clusters asks for another number.

    Args:
        kept: `clusters` of the checkpoint whose memory bank `features` is; None or empty if it keeps none.
        features, number, seed: as of `find_clusters`.
    """
    if kept and kept["asked"] == number:
        return Clusters(kept["centres"], kept["asked"], kept["explanation"])
    return find_clusters(features, number, seed)


@dataclass(frozen=True)
class NumberOfClusters:
    """The number of clusters and the evidence for it.

    Attributes:
        clusters: the number found.
        candidates: every K considered, from 2 on; empty for less than two rows.
        criterion: its value for each of them; the largest K with a value below `threshold` is the
            number, 1 if none; K after a value of twice the threshold do not count.
        criterion_name: its name, for the axis of a plot.
        threshold: the value that the criterion is compared with.
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
        runs: repetitions with new samples and initial groups; the median of their linkages counts.
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
    explanation = f"{100 * agreeing:.0f} % of {len(answers)} checks give {clusters}"
    if others:
        explanation += f", the others {others[0]}" + (f" to {others[-1]}" if len(others) > 1 else "")
    if clusters == length + 1:
        explanation += f"; more than {clusters} are not considered for so few images"
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
    """The linkages (`merge_linkages`) of a sample of the rows, for the K considered."""
    if len(features) > ROWS_IN_RUN:
        order = torch.randperm(len(features), generator=generator(seed, "number of clusters", run))
        features = features[order[:ROWS_IN_RUN].to(features.device)]
    count = len(features)
    groups = min(max(2, count // ROWS_IN_GROUP), MOST_GROUPS)
    first = spherical_kmeans(features, groups, derive(seed, "groups", run), restarts=1, iterations=15)
    linkages = merge_linkages(neighbour_graph(features, GRAPH_NEIGHBOURS), first.assignments.numpy())
    return linkages[: max(1, groups // GROUPS_IN_CLUSTER - 1)]


def _largest_below(linkages: np.ndarray, threshold: float) -> int:
    """The largest K, from 2 on, with a linkage below the threshold, before the first above `CLEAR_FACTOR` times that.

    1 if there is none. In data without clusters the linkage falls again for large K.
    """
    above = np.flatnonzero(linkages > CLEAR_FACTOR * threshold)
    below = np.flatnonzero(linkages[: above[0] if len(above) else None] < threshold)
    return int(below[-1]) + 2 if len(below) else 1


def neighbour_graph(features: Tensor, neighbours: int) -> scipy.sparse.csr_matrix:
    """Rows i and j are joined if one is among the nearest of the other: weight 1/2, or 1 if each is the other's.

    Args:
        features: (N, D) float32 unit rows, N at least 2.
        neighbours: nearest rows of each, itself not counted; N - 1 where there are fewer.

    Returns:
        (N, N) symmetric, float64, nothing on the diagonal.
    """
    count = len(features)
    neighbours = min(neighbours, count - 1)
    _, indices = nearest(features, features, neighbours, own=torch.arange(count, device=features.device))
    row_ends = np.arange(count + 1) * neighbours
    one_way = scipy.sparse.csr_matrix(
        (np.ones(count * neighbours), indices.cpu().numpy().ravel(), row_ends), shape=(count, count)
    )
    return (0.5 * (one_way + one_way.T)).tocsr()


def merge_linkages(graph: scipy.sparse.csr_matrix, groups: np.ndarray) -> np.ndarray:
    """Repeatedly merge the two groups of the highest linkage; returns these linkages.

    The linkage of groups A and B is w_AB w' / (w_A w_B), where w_AB is the weight of the edges from A to B, w_A that of
    all edges at the rows of A, and w' the mean of w_A over the K groups: for groups of equal size the share of A's
    edges that lead to B. (Times K it is the inverse of the distance of Bonald et al. 2018, which compares w_AB with
    edges laid at random; but whether two groups are one should not depend on how many others there are.) It is divided
    by n K / N where the smaller group, of n rows, is smaller than the mean of K groups of N rows: small groups must
    be further apart.

    Args:
        graph: (N, N) symmetric weights.
        groups: (N,) int64 from 0, the group of each row.

    Returns:
        (M - 1,) the linkage of the two most linked of K = 2, 3, ..., M groups, where M are not empty.
    """
    count, rows = int(groups.max()) + 1, len(groups)
    member = scipy.sparse.csr_matrix((np.ones(rows), (np.arange(rows), groups)), shape=(rows, count))
    weights = (member.T @ graph @ member).toarray()  # (M, M), inside the groups on the diagonal
    sizes = np.bincount(groups, minlength=count).astype(float)
    weights, sizes = weights[np.ix_(sizes > 0, sizes > 0)], sizes[sizes > 0]
    linkages = []
    for left in range(len(sizes), 1, -1):
        edges = weights.sum(axis=1)
        share = np.minimum(1.0, sizes * left / rows)
        links = weights * edges.mean() / np.outer(edges, edges) / np.minimum.outer(share, share)
        np.fill_diagonal(links, -1.0)
        one, other = np.unravel_index(links.argmax(), links.shape)
        linkages.append(links[one, other])
        weights[one] += weights[other]
        weights[:, one] += weights[:, other]
        sizes[one] += sizes[other]
        weights, sizes = np.delete(np.delete(weights, other, 0), other, 1), np.delete(sizes, other)
    return np.array(linkages[::-1])
