"""Spherical k-means (Dhillon and Modha 2001): the K unit centres with the largest mean cosine to their images."""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from lib.search.exact import as_array, nearest
from lib.seeding import derive

ITERATIONS = 30
RESTARTS = 5


@dataclass(frozen=True, eq=False)
class Clustering:
    """K clusters of N features. All tensors are on the CPU.

    Attributes:
        assignments: (N,) int64, the cluster of each row: that of the centre with the highest cosine.
        centres: (K, D) float32, unit rows.
        sizes: (K,) int64; clusters are numbered by size, the largest first, among equals by their first row.
        objective: mean cosine of the rows with the centres of their clusters.
    """

    assignments: Tensor
    centres: Tensor
    sizes: Tensor
    objective: float


def spherical_kmeans(
    features: Tensor, clusters: int, seed: int = 0, restarts: int = RESTARTS, iterations: int = ITERATIONS
) -> Clustering:
    """The best of several runs of spherical k-means by faiss, each from other centres drawn by k-means++.

    The same features, seed and number of threads give the same clusters.

    Args:
        features: (N, D) float32 unit rows.
        clusters: K, from 1 to N. Where fewer than K rows differ, some clusters are empty.
        seed: of the first centres.
        restarts: runs, of which the one with the largest objective counts.
        iterations: of a run.

    Raises:
        ValueError: K is out of range.
    """
    rows = as_array(features)
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"K = {clusters} clusters exceed the {len(rows)} rows")
    found = [
        _run(rows, clusters, derive(seed, "k-means", clusters, restart) % 2**31, iterations)
        for restart in range(restarts)
    ]
    _, centres = max(found, key=lambda run: run[0])
    return assigned(torch.from_numpy(rows), torch.from_numpy(centres))


def assigned(features: Tensor, centres: Tensor) -> Clustering:
    """Assign each row to its nearest centre and number the clusters by size.

    Args:
        features: (N, D) float32 unit rows.
        centres: (K, D) float32 unit rows, in any order.
    """
    similarities, indices = nearest(features.cpu(), centres, 1, backend="faiss")
    raw = indices[:, 0].numpy()
    sizes = np.bincount(raw, minlength=len(centres))
    first_row = np.full(len(centres), len(raw))
    np.minimum.at(first_row, raw, np.arange(len(raw)))
    order = np.lexsort((first_row, -sizes))
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return Clustering(
        torch.from_numpy(number[raw].astype(np.int64)),
        centres[torch.from_numpy(order)],
        torch.from_numpy(sizes[order].astype(np.int64)),
        similarities.double().mean().item(),
    )


def _run(rows: np.ndarray, clusters: int, seed: int, iterations: int) -> tuple[float, np.ndarray]:
    """The objective (a sum of cosines) and the centres (K, D) of one run."""
    dim = rows.shape[1]
    first, _ = kmeans_plusplus(rows, clusters, random_state=seed)
    run = faiss.Kmeans(
        dim,
        clusters,
        niter=iterations,
        nredo=1,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),  # by default faiss uses only a sample
    )
    run.train(rows, init_centroids=np.ascontiguousarray(first, dtype=np.float32))
    assert run.obj is not None  # train sets it
    return float(run.obj[-1]), np.array(run.centroids, dtype=np.float32)
