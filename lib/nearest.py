"""Exact nearest neighbours by inner product, with a fixed order among equals."""

from typing import Optional

import faiss
import numpy as np
import torch
from torch import Tensor


def nearest(queries: Tensor, database: Tensor, k: int, own: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """The k rows of `database` with the highest inner product with each query.

    Rows of equal similarity are taken in the order of their index, so that the answer is a function of the data.

    Args:
        queries: (Q, D) float32.
        database: (N, D) float32.
        k: how many, from 1 to N (N - 1 if `own` is given).
        own: (Q,) int64, the query's own row in the database, to be left out of its answer; or None.

    Returns:
        similarities (Q, k) float32, highest first, and indices (Q, k) int64, on the device of `queries`.

    Raises:
        ValueError: k is out of range.
    """
    available = len(database) - (own is not None)
    if not 1 <= k <= available:
        raise ValueError(f"k = {k} neighbours asked for where there are {available}")
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(_as_array(database))
    similarities, indices = _ordered(index, _as_array(queries), k, None if own is None else own.detach().cpu().numpy())
    device = queries.device
    return torch.from_numpy(similarities).to(device), torch.from_numpy(indices).to(device)


def _as_array(rows: Tensor) -> np.ndarray:
    return np.ascontiguousarray(rows.detach().cpu().numpy(), dtype=np.float32)


def _ordered(
    index: "faiss.IndexFlatIP", queries: np.ndarray, k: int, own: Optional[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Search wide enough to see past any tie at the k-th place, then order by (similarity, index)."""
    out_sims = np.empty((len(queries), k), dtype=np.float32)
    out_indices = np.empty((len(queries), k), dtype=np.int64)
    open_rows = np.arange(len(queries))
    width = k + 1 + (own is not None)
    while len(open_rows):
        width = min(width, index.ntotal)
        sims, indices = index.search(queries[open_rows], width)
        if own is not None:
            sims = np.where(indices == own[open_rows, None], -np.inf, sims)  # sorts to the very end
        order = np.lexsort((indices, -sims), axis=1)
        sims, indices = np.take_along_axis(sims, order, 1), np.take_along_axis(indices, order, 1)
        # A tie between the k-th and the last row seen may go on beyond what was seen: look further there.
        settled = np.ones(len(open_rows), dtype=bool)
        if width < index.ntotal:
            last_seen = sims[:, -1 - (own is not None)]
            settled = last_seen < sims[:, k - 1]
        out_sims[open_rows[settled]] = sims[settled, :k]
        out_indices[open_rows[settled]] = indices[settled, :k]
        open_rows = open_rows[~settled]
        width *= 2
    return out_sims, out_indices
