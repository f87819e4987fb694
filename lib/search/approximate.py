"""Approximate nearest rows by a faiss inverted file (IVF): fast for many rows, with a recall near 1.

The rows are divided into some 4 sqrt(N) lists around centres; a query searches the lists of the nearest centres.
"""

import math
from typing import Any, Optional, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.distributed.world import Shard
from lib.search.exact import ExactSearch, as_array, check_k, merge_nearest

TRAINING_ROWS_PER_LIST = 64
"""Training rows per centre; faiss wants at least 39 and uses at most 256."""

SHARE_OF_LISTS = 1 / 64
"""Share of the lists that a query searches, but at least `FEWEST_LISTS`."""

FEWEST_LISTS = 16


class ApproximateSearch:
    """Approximates `lib.search.exact.ExactSearch` with the same call; `recall` measures how well.

    Each process indexes its own rows. The centres are functions of evenly spaced rows and the seed.

    Args:
        database: (N, D) float32; with several processes those rows that `shard` names.
        shard: which rows `database` is; None: all of them.
        seed: of the centres.
    """

    def __init__(self, database: Tensor, shard: Optional[Shard] = None, seed: int = 0):
        import faiss  # imported here, since training can start without it

        self._shard = Shard.whole(database) if shard is None else shard
        self._exact = ExactSearch(database, "torch", Shard.whole(database))
        self._own_rows = len(database)
        lists = max(1, min(round(4 * math.sqrt(len(database))), len(database)))
        kind = f"IVF{lists},Flat"
        # faiss declares it as Index, which lacks the attributes of an IndexIVFFlat
        self._index = cast(Any, faiss.index_factory(database.shape[1], kind, faiss.METRIC_INNER_PRODUCT))
        self._index.cp.seed = seed
        self._index.cp.min_points_per_centroid = 1  # no warning for few rows
        self._index.nprobe = min(lists, max(FEWEST_LISTS, math.ceil(lists * SHARE_OF_LISTS)))
        if len(database) > 0:
            rows = as_array(database)
            chosen = np.linspace(0, len(rows) - 1, min(len(rows), TRAINING_ROWS_PER_LIST * lists)).astype(np.int64)
            self._index.train(rows[chosen])
            self._index.add(rows)

    def __call__(self, queries: Tensor, k: int, own: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """As `lib.search.exact.nearest`."""
        check_k(k, self._shard.count, own)
        own = None if own is None else own - self._shard.start
        similarities, indices = self._in_own_rows(queries, k, own)
        indices = torch.where(indices >= 0, indices + self._shard.start, self._shard.count)
        return merge_nearest(similarities, indices, self._shard.world)

    def _in_own_rows(self, queries: Tensor, k: int, own: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """(Q, k) similarities and indices within this process's rows; -inf and -1 where it has fewer."""
        if self._own_rows == 0 or len(queries) == 0:
            shape = (len(queries), k)
            return queries.new_full(shape, float("-inf")), queries.new_full(shape, -1).long()
        width = min(k + (own is not None), self._own_rows)
        found = self._index.search(as_array(queries), width)
        similarities, indices = (torch.from_numpy(array).to(queries.device) for array in found)
        similarities = similarities.masked_fill(indices < 0, float("-inf"))
        if own is not None:
            similarities = similarities.masked_fill(indices == own[:, None], float("-inf"))
        indices, order = indices.sort(dim=1)  # ties by index
        similarities, places = similarities.gather(1, order).sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, places)
        similarities, indices = similarities[:, :k], indices[:, :k]
        # the searched lists may hold fewer than k rows: search all rows for such queries
        wanted = min(k, self._own_rows - (own is not None))
        short = torch.nonzero(similarities[:, :wanted].isinf().any(dim=1)).flatten()
        if wanted > 0 and len(short) > 0:
            inside = None if own is None else own[short]
            exact = self._exact(queries[short], wanted, inside)
            similarities[short, :wanted], indices[short, :wanted] = exact
        missing = k - similarities.shape[1]
        indices = indices.masked_fill(similarities.isinf(), -1)
        return F.pad(similarities, (0, missing), value=float("-inf")), F.pad(indices, (0, missing), value=-1)


def recall(found: Tensor, true: Tensor) -> float:
    """Share of queries whose nearest row was found, or one as near.

    Args:
        found, true: (Q, k) similarities, highest first, of the approximate and of an exact search.
    """
    return (found[:, 0] >= true[:, 0] - 1e-5 * true[:, 0].abs()).double().mean().item()
