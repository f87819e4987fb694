"""The nearest rows of all processes from the nearest rows in each process's own part."""

import torch
from torch import Tensor

from lib.distributed.world import World

MERGED_ELEMENTS = 2**22
"""Similarities of all processes that are looked at together: 16 MiB, and twice that of row numbers."""


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
