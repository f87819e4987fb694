"""The graph of nearest neighbours."""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from lib.search.exact import nearest


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
