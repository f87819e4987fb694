"""Criteria for the number of clusters in unit features (N, D). Each is a function from (features, seed) to K."""

from collections.abc import Callable
from functools import cache

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import eigsh
from sklearn.cluster import HDBSCAN
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from lib.clustering.clusters import GRAPH_NEIGHBOURS, choose_number, neighbour_graph
from lib.clustering.kmeans import spherical_kmeans
from lib.seeding import generator

MOST = 20
"""The largest K that the criteria over k-means consider; the eigengap considers twice as many."""

Criterion = Callable[[Tensor, int], int]


def linkage(features: Tensor, seed: int) -> int:
    """The criterion of `--num-clusters auto`."""
    return choose_number(features, seed).clusters


def eigengap(features: Tensor, seed: int) -> int:
    """The K, from 2 on, after which the eigenvalues of the neighbour graph's normalised Laplacian rise most."""
    graph = neighbour_graph(features, GRAPH_NEIGHBOURS)
    scale = scipy.sparse.diags(1.0 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    start = np.random.RandomState(seed).uniform(-1, 1, graph.shape[0])
    largest = eigsh(scale @ graph @ scale, k=2 * MOST + 1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)
    values = np.sort(1.0 - largest)
    return int(np.diff(values)[1:].argmax()) + 2


def silhouette(features: Tensor, seed: int) -> int:
    """The K with the best mean silhouette of spherical k-means."""
    sample = min(4000, len(features))
    scores = {
        K: silhouette_score(
            features.numpy(), _kmeans(features, K, seed), metric="cosine", sample_size=sample, random_state=seed
        )
        for K in range(2, MOST + 1)
    }
    return max(scores, key=scores.get)


def prediction_strength(features: Tensor, seed: int) -> int:
    """The largest K whose clusters of one half of the images predict those of the other (Tibshirani, Walther 2005).

    At least 0.8 of the pairs in each cluster must stay together, as they advise, on average over five divisions; 1
    if no K does.
    """
    strengths = {1: 1.0}
    for K in range(2, MOST + 1):
        strengths[K] = float(np.mean([_strength(features, K, seed, division) for division in range(5)]))
    return max(K for K, strength in strengths.items() if strength >= 0.8)


def _strength(features: Tensor, clusters: int, seed: int, division: int) -> float:
    order = torch.randperm(len(features), generator=generator(seed, "strength", division))
    one, other = features[order[::2]], features[order[1::2]]
    centres = spherical_kmeans(one, clusters, division, restarts=2).centres
    own = spherical_kmeans(other, clusters, division, restarts=2).assignments
    predicted = (other @ centres.t()).argmax(dim=1)
    shares = [1.0]
    for cluster in range(clusters):
        counts = torch.bincount(predicted[own == cluster]).double()
        count = counts.sum()
        if count > 1:
            shares.append(float((counts * (counts - 1)).sum() / (count * (count - 1))))
    return min(shares)


def gap_statistic(features: Tensor, seed: int) -> int:
    """The first K whose gap is not below the next one's less its error (Tibshirani, Walther, Hastie 2001).

    The gap is between log(1 - mean cosine with the centre) of the features and of points drawn uniformly from the box
    around their principal components and brought to unit length, five times.
    """
    centre = features.mean(dim=0)
    _, _, axes = torch.linalg.svd(features - centre, full_matrices=False)
    along = (features - centre) @ axes.t()
    low, high = along.min(dim=0).values, along.max(dim=0).values
    references = []
    for draw in range(5):
        uniform = torch.rand(along.shape, generator=generator(seed, "gap", draw))
        references.append(F.normalize((low + uniform * (high - low)) @ axes + centre, dim=1))

    def dispersion(rows: Tensor, clusters: int) -> float:
        return float(np.log(max(1.0 - spherical_kmeans(rows, clusters, seed, restarts=2).objective, 1e-12)))

    gaps, errors = [], []
    for K in range(1, MOST + 2):
        expected = [dispersion(rows, K) for rows in references]
        gaps.append(float(np.mean(expected)) - dispersion(features, K))
        errors.append(float(np.std(expected)) * np.sqrt(1 + 1 / len(references)))
        if K > 1 and gaps[-2] >= gaps[-1] - errors[-1]:
            return K - 1
    return MOST


def density(features: Tensor, seed: int) -> int:
    """HDBSCAN with clusters of at least sqrt(N) images, which may leave images out."""
    smallest = max(5, int(len(features) ** 0.5))
    return max(1, int(HDBSCAN(min_cluster_size=smallest, min_samples=10).fit(features.numpy()).labels_.max()) + 1)


def communities(features: Tensor, seed: int) -> int:
    """Louvain communities of the neighbour graph, the partition of best modularity."""
    import networkx

    graph = networkx.from_scipy_sparse_array(neighbour_graph(features, GRAPH_NEIGHBOURS))
    return len(networkx.community.louvain_communities(graph, seed=seed))


def _kmeans(features: Tensor, clusters: int, seed: int) -> np.ndarray:
    return spherical_kmeans(features, clusters, seed).assignments.numpy()


@cache
def criteria() -> dict[str, Criterion]:
    """The criteria by name, ours first. Louvain needs networkx, which later releases of PyTorch install."""
    found: dict[str, Criterion] = {
        "linkage": linkage,
        "eigengap": eigengap,
        "silhouette": silhouette,
        "prediction strength": prediction_strength,
        "gap statistic": gap_statistic,
        "HDBSCAN": density,
    }
    try:
        import networkx  # noqa: F401
    except ImportError:
        return found
    return {**found, "Louvain": communities}
