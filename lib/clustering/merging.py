"""Merging small groups of a neighbour graph, the most linked first, until one is left."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse


@dataclass(frozen=True, eq=False)
class Merging:
    """Attributes:
    linkage: for K = 2, 3, ... groups, at [K - 2], that of the two most linked of them, which are merged next.
    """

    linkage: np.ndarray


def merge(graph: scipy.sparse.csr_matrix, groups: np.ndarray, caution: float) -> Merging:
    """Merge the two groups of the highest linkage, again and again.

    The linkage of groups A and B is the weight of the edges between them over what it would be if the same edges were
    laid at random: 0 if no edge joins them, 1 if chance does as well (Bonald et al. 2018; a partition is best for
    modularity of resolution g if all linkages are below g). It is divided by (n K / N)^caution where the smaller group,
    of n rows, is smaller than the mean of K groups of N rows: a small group must stand more apart to count.

    Args:
        graph: (N, N) symmetric weights.
        groups: (N,) int64, the group of each row.
        caution: at least 0.
    """
    count = int(groups.max()) + 1
    member = scipy.sparse.csr_matrix((np.ones(len(groups)), (np.arange(len(groups)), groups)), shape=(len(groups), count))
    weights = (member.T @ graph @ member).toarray()  # (M, M), inside the groups on the diagonal
    sizes = np.bincount(groups, minlength=count).astype(float)
    kept = sizes > 0
    weights, sizes = weights[np.ix_(kept, kept)], sizes[kept]
    total, rows = weights.sum(), sizes.sum()
    linkage = []
    for left in range(len(sizes), 1, -1):
        volumes = weights.sum(axis=1)
        links = weights * (total / np.outer(volumes, volumes))
        share = np.minimum(1.0, sizes * left / rows) ** caution
        links /= np.minimum.outer(share, share)
        np.fill_diagonal(links, -1.0)
        one, other = np.unravel_index(links.argmax(), links.shape)
        linkage.append(links[one, other])
        weights[one] += weights[other]
        weights[:, one] += weights[:, other]
        sizes[one] += sizes[other]
        weights, sizes = np.delete(np.delete(weights, other, 0), other, 1), np.delete(sizes, other)
    return Merging(np.array(linkage[::-1]))
