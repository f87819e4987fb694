"""Exact nearest neighbours by inner product, with a fixed order among equals: by faiss, or by PyTorch."""

import math
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.distributed.shard import Shard
from lib.distributed.world import World

CPU_TILE_ELEMENTS, GPU_TILE_ELEMENTS = 2**24, 2**27
"""Similarities that a search holds at a time; faiss works on the CPU."""

MERGED_ELEMENTS = 2**22
"""Similarities of all processes that are looked at together: 16 MiB, and twice that of row numbers."""

STEP = 16
"""The blocks of matrix products on CPUs divide it; what is left over at an edge is summed in another order."""


def nearest(
    queries: Tensor,
    database: Tensor,
    k: int,
    own: Optional[Tensor] = None,
    backend: str = "auto",
    shard: Optional[Shard] = None,
) -> tuple[Tensor, Tensor]:
    """The k rows of `database` with the highest inner product with each query.

    Rows of equal similarity, to the bit, are taken in the order of their index, so that the answer is a function of
    the data.

    Args:
        queries: (Q, D) float32; with several processes the same on each.
        database: (N, D) float32; with several processes those rows that `shard` names.
        k: how many, from 1 to N (N - 1 if `own` is given).
        own: (Q,) int64, the query's own row in the database, to be left out of its answer; or None.
        backend: `faiss` (flat index, on the CPU), `torch` (on the device of the rows), or `auto`: faiss on a CPU.
        shard: which rows `database` is; None: all of them.

    Returns:
        similarities (Q, k) float32, highest first, and indices (Q, k) int64, on the device of `queries`.

    Raises:
        ValueError: k is out of range.
    """
    return ExactSearch(database, backend, shard)(queries, k, own)


class ExactSearch:
    """`nearest` for several lots of queries in one database. Arguments as there.

    Each process searches its own rows for all queries, and the best of all are merged.

    Args:
        tile_elements: similarities held at a time; 0 takes the default for the device. An index of faiss is one more
            copy of the database.
    """

    def __init__(self, database: Tensor, backend: str = "auto", shard: Optional[Shard] = None, tile_elements: int = 0):
        self._database = database
        self._shard = Shard.whole(database) if shard is None else shard
        self._tile_elements = tile_elements
        self._index = None
        if backend == "faiss" or (backend == "auto" and not database.is_cuda):
            import faiss  # here and not above: a run starts without it

            self._index = faiss.IndexFlatIP(database.shape[1])
            self._index.add(as_array(database))

    def __call__(self, queries: Tensor, k: int, own: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """As `nearest`."""
        check_k(k, self._shard.count, own)
        own = None if own is None else own - self._shard.start
        width = min(k, len(self._database))  # a small part may have fewer to offer
        if width == 0:
            similarities, indices = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0).long()
        elif self._index is None:
            tile_elements = self._tile_elements or (GPU_TILE_ELEMENTS if queries.is_cuda else CPU_TILE_ELEMENTS)
            similarities, indices = _by_torch(queries, self._database, width, own, tile_elements)
        else:
            own_array = None if own is None else own.detach().cpu().numpy()
            found = _ordered(self._index, as_array(queries), width, own_array, self._tile_elements or CPU_TILE_ELEMENTS)
            similarities, indices = (torch.from_numpy(array).to(queries.device) for array in found)
        if self._shard.world.size == 1:
            return similarities, indices
        similarities = F.pad(similarities, (0, k - width), value=float("-inf"))
        indices = F.pad(indices + self._shard.start, (0, k - width), value=self._shard.count)
        return merge_nearest(similarities, indices, self._shard.world)


def check_k(k: int, count: int, own: Optional[Tensor]) -> None:
    """Raises ValueError if there are no k rows to find among `count`, a query's own left out."""
    available = count - (own is not None)
    if not 1 <= k <= available:
        raise ValueError(f"k = {k} neighbours asked for where there are {available}")


def as_array(rows: Tensor) -> np.ndarray:
    """Rows as faiss takes them."""
    return np.ascontiguousarray(rows.detach().cpu().numpy(), dtype=np.float32)


def inner_products(queries: Tensor, rows: Tensor) -> Tensor:
    """All inner products (Q, T) of queries (Q, D) and rows (T, D).

    Equal rows are to give equal products, to the bit, whatever stands beside them and in whichever call, so that ties
    can be told by them. A plain product rounds otherwise at its edges; so both sides are filled up to whole blocks.
    PyTorch's libraries do not promise that this is enough: on one thread we have seen no exception, on several a few.
    """
    spare_queries, spare_rows = -len(queries) % STEP, -len(rows) % STEP
    if spare_queries > 0:
        queries = F.pad(queries, (0, 0, 0, spare_queries))
    whole = len(rows) // STEP * STEP
    if spare_rows == 0:
        products = queries @ rows.t()
    elif whole == 0:
        products = queries @ F.pad(rows, (0, 0, 0, spare_rows)).t()
    else:  # the last few alone: filling up all rows would copy them
        products = queries.new_empty(len(queries), len(rows))
        torch.mm(queries, rows[:whole].t(), out=products[:, :whole])
        last = queries @ F.pad(rows[whole:], (0, 0, 0, spare_rows)).t()
        products[:, whole:] = last[:, : len(rows) - whole]
    return products[: len(products) - spare_queries, : len(rows)]


def merge_nearest(similarities: Tensor, indices: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """The k most similar rows of each query among those that the processes found; of equals the lower index.

    Each process holds a contiguous part of the rows, in the order of the ranks, so a stable sort of what they found
    keeps the lower index first.

    Args:
        similarities: (Q, k) float32, in order; -inf where a process has fewer than k rows to offer.
        indices: (Q, k) int64, numbers within all rows.

    Returns:
        both again, the same on every process.
    """
    if world.size == 1:
        return similarities, indices
    queries, k = similarities.shape
    found_similarities, found_indices = torch.empty_like(similarities), torch.empty_like(indices)
    counts = [1] * world.size
    step = max(1, MERGED_ELEMENTS // max(1, world.size * k))
    for start in range(0, queries, step):
        part = slice(start, min(start + step, queries))
        every = world.gather_rows(similarities[part][None], counts).transpose(0, 1).flatten(1)  # (Q, P k)
        numbers = world.gather_rows(indices[part][None], counts).transpose(0, 1).flatten(1)
        values, order = every.sort(dim=1, descending=True, stable=True)
        found_similarities[part] = values[:, :k]
        found_indices[part] = numbers.gather(1, order[:, :k])
    return found_similarities, found_indices


def _by_torch(
    queries: Tensor, database: Tensor, k: int, own: Optional[Tensor], tile_elements: int
) -> tuple[Tensor, Tensor]:
    if len(queries) == 0:
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    tile_rows = max(1, tile_elements // len(database))
    found = []
    for start in range(0, len(queries), tile_rows):
        sims = inner_products(queries[start : start + tile_rows], database)  # (T, N)
        if own is not None:
            columns = own[start : start + tile_rows]
            rows = torch.nonzero((columns >= 0) & (columns < len(database))).flatten()
            sims[rows, columns[rows]] = float("-inf")
        found.append(_largest(sims, k))
    similarities, indices = zip(*found)
    return torch.cat(similarities), torch.cat(indices)


def _largest(sims: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in order of (similarity, index). topk leaves the order of equals open."""
    values, indices = sims.topk(min(k + 1, sims.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = values[:, k - 1] == values[:, k]
    else:  # all rows were asked for: none is left out
        tied = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    indices = indices[:, :k].sort(dim=1).values
    values, order = sims.gather(1, indices).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    for row in torch.nonzero(tied).flatten().tolist():  # a tie across the k-th place: topk may have kept the wrong ones
        whole = sims[row].sort(descending=True, stable=True)
        values[row], indices[row] = whole.values[:k], whole.indices[:k]
    return values, indices


def _ordered(
    index: Any, queries: np.ndarray, k: int, own: Optional[np.ndarray], tile_elements: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search wide enough to see past any tie at the k-th place, then order by (similarity, index).

    Args:
        index: a flat index of faiss.
        own: a row number that is not in the index leaves nothing out.
    """
    out_sims = np.empty((len(queries), k), dtype=np.float32)
    out_indices = np.empty((len(queries), k), dtype=np.int64)
    open_rows = np.arange(len(queries))
    width = k + 1 + (own is not None)
    while len(open_rows):
        width = min(width, index.ntotal)
        still_open = []
        for rows in np.array_split(open_rows, math.ceil(len(open_rows) * width / tile_elements)):
            sims, indices = index.search(queries[rows], width)
            if own is not None:
                sims = np.where(indices == own[rows, None], -np.inf, sims)  # sorts to the very end
            order = np.lexsort((indices, -sims), axis=1)
            sims, indices = np.take_along_axis(sims, order, 1), np.take_along_axis(indices, order, 1)
            # A tie between the k-th and the last row seen may go on beyond what was seen: look further there.
            settled = np.ones(len(rows), dtype=bool)
            if width < index.ntotal:
                settled = sims[:, -1 - (own is not None)] < sims[:, k - 1]
            out_sims[rows[settled]] = sims[settled, :k]
            out_indices[rows[settled]] = indices[settled, :k]
            still_open.append(rows[~settled])
        open_rows = np.concatenate(still_open)
        width *= 2
    return out_sims, out_indices
