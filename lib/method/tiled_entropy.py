"""Entropies from one pass over the products of the bank with itself, and the neighbours' tiles from the same pass.

The matrix of similarities is symmetric, so each tile of it above the diagonal serves the rows and the columns it
spans: half of the N x N products give every entropy, and the largest similarity that each row has in each tile. The
few best tiles of a row say where its neighbours are; `tiled_neighbours` then looks there.

The tiles are dealt out to the processes in turn. Two panels of the bank at a time are everywhere.
"""

import torch
from torch import Tensor

from lib.distributed.shard import Shard
from lib.method.best_tiles import BestTiles
from lib.method.discovery_grid import GROUP, Grid

SAFE_SPREAD = 60.0
"""How far apart the rows' own logits may lie for one shift to keep every sum within float32."""


def squared_lengths(memory: Tensor) -> Tensor:
    """(N,), without a second bank in between."""
    return memory.norm(dim=1).square_()


def suits(memory: Tensor, temperature: float, shard: Shard) -> bool:
    """Whether one shift fits all rows, as it does for rows of unit length."""
    own = squared_lengths(memory) / temperature
    extremes = memory.new_full((2,), float("-inf"))
    if len(own) > 0:
        extremes = torch.stack([own.max(), -own.min()])
    largest, smallest = shard.world.all_reduce_max(extremes).tolist()
    return largest + smallest <= SAFE_SPREAD


def entropies_and_best_tiles(
    memory: Tensor, temperature: float, keep: int, grid: Grid, shard: Shard
) -> tuple[Tensor, BestTiles]:
    """Equation 5 for every row, and where its neighbours can be.

    With y_ij = (m_i . m_j - s) / tau, s the largest squared length of a row, no y is above 0, and
    H_i = log sum_j exp(y_ij) - sum_j exp(y_ij) y_ij / sum_j exp(y_ij).

    The sums of a tile are taken in float32 and added up in float64, so that their order, and with it the number of
    processes, leaves no trace in an entropy.

    Args:
        memory: the rows of the bank that are here, for which `suits` holds.
        temperature: tau.
        keep: how many tiles of each row to name, at most as many as there are.
        grid: tiles and panels.
        shard: which rows `memory` is.

    Returns:
        entropies (N,) in nats, float32, and the best tiles by y, a row itself left out; the same on every process.
    """
    world = shard.world
    longest = memory.new_zeros(1)
    if len(memory) > 0:
        longest = squared_lengths(memory).max().view(1)
    shift = world.all_reduce_max(longest)[0] / temperature
    sums = torch.zeros(2, shard.count, dtype=torch.float64, device=memory.device)
    best = BestTiles(keep, memory, shard.count)
    dealt = _Deal(world.rank, world.size)
    for start, stop in grid.panels(shard.count):
        rows = shard.fetch(memory, start, stop)
        for other_start, other_stop in grid.panels(shard.count, start):
            columns = rows if other_start == start else shard.fetch(memory, other_start, other_stop)
            _panel_pair(rows, start, columns, other_start, temperature, shift, grid.tile_rows, dealt, sums, best)
    total, weighted = world.all_reduce_sum(sums)
    best.merge(world)
    entropy = (total.log() - weighted / total).clamp_(min=0.0).to(memory.dtype)
    return world.broadcast(entropy), best  # no process may order them by a last bit of its own


class _Deal:
    """Deals tiles out to the processes in turn."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size, self._number = rank, size, 0

    def is_mine(self) -> bool:
        """Whether the next tile is this process's."""
        self._number += 1
        return (self._number - 1) % self._size == self._rank


def _panel_pair(
    rows: Tensor,
    start: int,
    columns: Tensor,
    other_start: int,
    temperature: float,
    shift: Tensor,
    tile_rows: int,
    dealt: _Deal,
    sums: Tensor,
    best: BestTiles,
) -> None:
    """The tiles of one panel of rows and one of columns, as far as they are this process's."""
    parts = columns.split(tile_rows)
    first_a, first_b = start // tile_rows, other_start // tile_rows
    of_columns = columns.new_empty(GROUP, len(columns))  # the columns' maxima in the last tiles of rows
    group_start = first_a
    for a, part_a in enumerate(rows.split(tile_rows), first_a):
        row_span = slice(a * tile_rows, a * tile_rows + len(part_a))
        scaled = part_a / temperature
        of_rows = columns.new_full((len(parts), len(part_a)), float("-inf"))
        of_columns[a - group_start].fill_(float("-inf"))
        for b, part_b in enumerate(parts, first_b):
            if b < a or not dealt.is_mine():
                continue
            y = (scaled @ part_b.t()).sub_(shift)  # (T, T)
            if a == b:
                own = y.diagonal().clone()
                y.fill_diagonal_(float("-inf"))
                of_rows[b - first_b] = y.amax(dim=1)
                y.diagonal().copy_(own)
            else:
                offset = (b - first_b) * tile_rows
                of_rows[b - first_b] = y.amax(dim=1)
                of_columns[a - group_start, offset : offset + len(part_b)] = y.amax(dim=0)
            weights = y.exp()
            y.mul_(weights)
            sums[0, row_span] += weights.sum(dim=1)
            sums[1, row_span] += y.sum(dim=1)
            if a != b:
                column_span = slice(b * tile_rows, b * tile_rows + len(part_b))
                sums[0, column_span] += weights.sum(dim=0)
                sums[1, column_span] += y.sum(dim=0)
        best.offer(row_span.start, of_rows, first_b)
        if a + 1 - group_start == GROUP or row_span.stop == start + len(rows):
            best.offer(other_start, of_columns[: a + 1 - group_start], group_start)
            group_start = a + 1
