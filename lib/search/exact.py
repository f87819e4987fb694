"""Exact nearest rows by inner product, by faiss or PyTorch, with ties in the order of their index."""

import math
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.distributed.world import Shard, World

CPU_TILE_ELEMENTS, GPU_TILE_ELEMENTS = 2**24, 2**27
"""Similarities held at a time by a search, on a CPU and on a GPU."""

SELECTED_ELEMENTS = 2**19
"""Similarities from which the largest are selected at a time on a CPU: they fit its cache."""

MERGED_ELEMENTS = 2**22
"""Similarities of all processes that are merged at a time: 16 MiB, and twice that of row numbers."""

BLOCK = 16
"""A multiple of the block sizes of matrix products on CPUs; the rest at an edge is summed in another order."""

LARGEST_SAMPLE = 5_000
"""The most rows in a sample for diagnostics."""


def nearest(
    queries: Tensor,
    database: Tensor,
    k: int,
    own: Optional[Tensor] = None,
    backend: str = "auto",
    shard: Optional[Shard] = None,
) -> tuple[Tensor, Tensor]:
    """The k rows of `database` with the highest inner product with each query.

    Rows of equal similarity, to the bit, come in the order of their index, so that the result is a function of the
    data.

    Args:
        queries: (Q, D), taken as float32; with several processes the same on each.
        database: (N, D), taken as float32; with several processes those rows that `shard` names.
        k: how many, from 1 to N (N - 1 if `own` is given).
        own: (Q,) int64, each query's own row in the database, which is excluded from its result; or None.
        backend: `faiss` (flat index, on the CPU); `torch` or `auto`: PyTorch, on the device of the rows.
        shard: which rows `database` is; None: all of them.

    Returns:
        similarities (Q, k) float32, highest first, and indices (Q, k) int64, on the device of `queries`.

    Raises:
        ValueError: k is out of range.
    """
    return ExactSearch(database, backend, shard)(queries, k, own)


class ExactSearch:
    """`nearest` for several batches of queries in one database, with the same arguments.

    Each process searches its own rows for all queries; the results are merged.

    Args:
        tile_elements: similarities held at a time; 0 takes the default for the device. A faiss index is one more copy
            of the database.
    """

    def __init__(self, database: Tensor, backend: str = "auto", shard: Optional[Shard] = None, tile_elements: int = 0):
        self._database = database.float()
        self._shard = Shard.whole(database) if shard is None else shard
        self._tile_elements = tile_elements
        self._index = None
        if backend == "faiss":
            import faiss  # imported here, since training can start without it

            self._index = faiss.IndexFlatIP(database.shape[1])
            self._index.add(as_array(database))

    def __call__(self, queries: Tensor, k: int, own: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """As `nearest`."""
        check_k(k, self._shard.count, own)
        own = None if own is None else own - self._shard.start
        width = min(k, len(self._database))  # a small shard may have fewer rows
        if width == 0:
            similarities, indices = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0).long()
        elif self._index is None:
            tile_elements = self._tile_elements or (GPU_TILE_ELEMENTS if queries.is_cuda else CPU_TILE_ELEMENTS)
            similarities, indices = _by_torch(queries.float(), self._database, width, own, tile_elements)
        else:
            own_array = None if own is None else own.detach().cpu().numpy()
            found = _by_faiss(
                self._index, as_array(queries), width, own_array, self._tile_elements or CPU_TILE_ELEMENTS
            )
            similarities, indices = (torch.from_numpy(array).to(queries.device) for array in found)
        if self._shard.world.size == 1:
            return similarities, indices
        similarities = F.pad(similarities, (0, k - width), value=float("-inf"))
        indices = F.pad(indices + self._shard.start, (0, k - width), value=self._shard.count)
        return merge_nearest(similarities, indices, self._shard.world)


def check_k(k: int, count: int, own: Optional[Tensor]) -> None:
    """Raises ValueError if `count` rows, without a query's own, are fewer than k."""
    available = count - (own is not None)
    if not 1 <= k <= available:
        raise ValueError(f"k = {k} neighbours exceed the {available} rows to choose from")


def as_array(rows: Tensor) -> np.ndarray:
    """Rows as a float32 array for faiss."""
    return np.ascontiguousarray(rows.detach().cpu().numpy(), dtype=np.float32)


def inner_products(queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products (Q, T) of queries (Q, D) and rows (T, D), which do not depend on a row's position.

    Equal rows give equal products, to the bit, beside any other rows and in any call, so that ties are exact. A plain
    matrix product rounds differently at its edges, so both sides are padded to whole blocks. PyTorch's libraries do
    not guarantee that this is enough: in our tests ties were exact on one thread, and with a few exceptions on
    several.
    """
    spare_queries, spare_rows = -len(queries) % BLOCK, -len(rows) % BLOCK
    if spare_queries > 0:
        queries = F.pad(queries, (0, 0, 0, spare_queries))
    whole = len(rows) // BLOCK * BLOCK
    if spare_rows == 0:
        products = queries @ rows.t()
    elif whole == 0:
        products = queries @ F.pad(rows, (0, 0, 0, spare_rows)).t()
    else:  # the last rows separately: padding all rows would copy them
        products = queries.new_empty(len(queries), len(rows))
        torch.mm(queries, rows[:whole].t(), out=products[:, :whole])
        last = queries @ F.pad(rows[whole:], (0, 0, 0, spare_rows)).t()
        products[:, whole:] = last[:, : len(rows) - whole]
    return products[: len(products) - spare_queries, : len(rows)]


def merge_nearest(similarities: Tensor, indices: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """The k most similar rows of each query among the results of all processes; ties by index.

    The processes hold contiguous parts of the rows in the order of their ranks, so a stable sort of their results
    keeps the lower index first.

    Args:
        similarities: (Q, k) float32, highest first; -inf where a process has fewer than k rows.
        indices: (Q, k) int64, row numbers among all rows.

    Returns:
        similarities (Q, k) and indices (Q, k), the same on every process.
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
    """The k largest of each row, ordered by (similarity, index)."""
    if sims.is_cuda:
        indices = _columns_by_topk(sims, k)
    else:
        chunks = sims.split(max(1, SELECTED_ELEMENTS // sims.shape[1]))
        indices = torch.from_numpy(np.concatenate([_columns_by_partition(chunk.numpy(), k) for chunk in chunks]))
    values, order = sims.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _columns_by_topk(sims: Tensor, k: int) -> Tensor:
    """The columns (T, k) of the k largest of each row, ascending; of equal ones those of lower index."""
    values, indices = sims.topk(min(k + 1, sims.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = values[:, k - 1] == values[:, k]
    else:  # k is the number of rows: none is left out
        tied = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    indices = indices[:, :k].sort(dim=1).values
    for row in torch.nonzero(tied).flatten().tolist():  # a tie across place k: topk may keep the wrong rows
        indices[row] = sims[row].sort(descending=True, stable=True).indices[:k].sort().values
    return indices


def _columns_by_partition(sims: np.ndarray, k: int) -> np.ndarray:
    """As `_columns_by_topk`, on the CPU, where NumPy's partition takes a fifth of the time of PyTorch's topk."""
    count = sims.shape[1]
    least = np.partition(sims, count - k, axis=1)[:, count - k]  # the k-th largest of each row
    rows, columns = np.divmod(np.flatnonzero(sims >= least[:, None]), count)
    if len(columns) > k * len(sims):  # ties across place k: of those equal to it, each row keeps the first
        is_above = sims[rows, columns] > least[rows]
        wanted = k - np.bincount(rows[is_above], minlength=len(sims))
        equal = np.bincount(rows[~is_above], minlength=len(sims))
        place = np.cumsum(~is_above) - 1 - (np.cumsum(equal) - equal)[rows]  # of each equal one in its row
        columns = columns[is_above | (place < wanted[rows])]
    return columns.reshape(len(sims), k)


def _by_faiss(
    index: Any, queries: np.ndarray, k: int, own: Optional[np.ndarray], tile_elements: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search a faiss index for enough rows to resolve ties at place k, then order by (similarity, index).

    Args:
        index: a flat index of faiss.
        own: row numbers, those outside the index are ignored.
    """
    out_sims = np.empty((len(queries), k), dtype=np.float32)
    out_indices = np.empty((len(queries), k), dtype=np.int64)
    pending = np.arange(len(queries))
    width = k + 1 + (own is not None)
    while len(pending):
        width = min(width, index.ntotal)
        incomplete = []
        for rows in np.array_split(pending, math.ceil(len(pending) * width / tile_elements)):
            sims, indices = index.search(queries[rows], width)
            if own is not None:
                sims = np.where(indices == own[rows, None], -np.inf, sims)  # so that it is sorted last
            order = np.lexsort((indices, -sims), axis=1)
            sims, indices = np.take_along_axis(sims, order, 1), np.take_along_axis(indices, order, 1)
            # a tie between place k and the last row found may continue beyond it: search wider there
            complete = np.ones(len(rows), dtype=bool)
            if width < index.ntotal:
                complete = sims[:, -1 - (own is not None)] < sims[:, k - 1]
            out_sims[rows[complete]] = sims[complete, :k]
            out_indices[rows[complete]] = indices[complete, :k]
            incomplete.append(rows[~complete])
        pending = np.concatenate(incomplete)
        width *= 2
    return out_sims, out_indices


def sample_rows(count: int, largest: int = LARGEST_SAMPLE) -> Tensor:
    """(S,) int64, the numbers of all `count` rows, or of `largest` of them at even distances."""
    if count <= largest:
        return torch.arange(count)
    return torch.div(torch.arange(largest) * count, largest, rounding_mode="floor")
