"""Merging small groups of a neighbour graph, the most linked first, until one is left."""

import numpy as np
import scipy.sparse


def merge_linkages(graph: scipy.sparse.csr_matrix, groups: np.ndarray) -> np.ndarray:
    """Merge the two groups of the highest linkage, again and again, and say how high it was.

    The linkage of groups A and B is w_AB w' / (w_A w_B), where w_AB is the weight of the edges from A to B, w_A that of
    all edges at the rows of A, and w' the mean of w_A over the K groups: for groups of equal size the share of A's
    edges that lead to B. (Times K it is the inverse of the distance of Bonald et al. 2018, which compares w_AB with
    edges laid at random; but whether two groups are one should not depend on how many others there are.) It is divided
    by n K / N where the smaller group, of n rows, is smaller than the mean of K groups of N rows: small groups must
    stand further apart.

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
