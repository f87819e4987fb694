"""The graph of nearest neighbours, and the spectrum of its Laplacian."""

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import eigsh
from torch import Tensor

from lib.nearest import nearest
from lib.seeding import derive

TOLERANCE = 1e-4


def neighbour_graph(features: Tensor, neighbours: int) -> scipy.sparse.csr_matrix:
    """Rows i and j are joined if one is among the nearest of the other: weight 1/2, or 1 if each is the other's.

    Args:
        features: (N, D) float32 unit rows.
        neighbours: nearest rows of each, itself not counted; N - 1 where there are fewer.

    Returns:
        (N, N) symmetric, float64, nothing on the diagonal.
    """
    count = len(features)
    neighbours = min(neighbours, count - 1)
    _, indices = nearest(features, features, neighbours, own=_rows(features))
    row_ends = np.arange(count + 1) * neighbours
    one_way = scipy.sparse.csr_matrix(
        (np.ones(count * neighbours), indices.cpu().numpy().ravel(), row_ends), shape=(count, count)
    )
    return (0.5 * (one_way + one_way.T)).tocsr()


def smallest_eigenvalues(graph: scipy.sparse.csr_matrix, count: int, seed: int) -> np.ndarray:
    """The smallest eigenvalues of the graph's normalised Laplacian I - D^(-1/2) W D^(-1/2), in rising order.

    As many are (nearly) 0 as the graph has (nearly) separate parts (von Luxburg 2007).

    Args:
        count: how many; below N.
        seed: of the vector that the iteration starts from.
    """
    scale = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-12)))
    walk = scale @ graph @ scale  # its largest eigenvalues are 1 minus the smallest of the Laplacian
    start = np.random.RandomState(derive(seed, "spectrum") % 2**32).uniform(-1, 1, graph.shape[0])
    if graph.shape[0] <= 4 * count:
        return np.sort(1.0 - np.linalg.eigvalsh(walk.toarray()))[:count]
    found = eigsh(walk, k=count, which="LA", v0=start, tol=TOLERANCE, return_eigenvectors=False)
    return np.sort(1.0 - found)


def _rows(features: Tensor) -> Tensor:
    import torch

    return torch.arange(len(features), device=features.device)
