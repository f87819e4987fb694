"""The bank rows of many anchors, panel by panel, on every process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lib.distributed.shard import Shard
from lib.method.discovery_grid import Grid


def anchor_panels(
    memory: Tensor, anchors: Tensor, k: int, grid: Grid, shard: Shard
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Go through the anchors in the order of their row numbers.

    Args:
        memory: the rows of the bank that are here.
        anchors: (A,) int64, no row twice, the same on every process.
        k: how many neighbours each is to get; so many that they take as much room as a panel make the lots smaller.
        grid: says how many rows may be fetched at a time.
        shard: which rows `memory` is.

    Yields:
        places in `anchors` (R,), the anchors there (R,), and their bank rows (R, D).
    """
    ascending, places = anchors.sort()
    at_once = max(1, grid.panel_rows * memory.shape[1] // (8 * k))
    for start, stop in grid.panels(shard.count):
        bounds = torch.tensor([start, stop], device=anchors.device)
        first, last = torch.searchsorted(ascending, bounds).tolist()
        if first == last:
            continue
        rows = shard.fetch(memory, start, stop)
        for lot, numbers in zip(places[first:last].split(at_once), ascending[first:last].split(at_once)):
            yield lot, numbers, rows[numbers - start]
