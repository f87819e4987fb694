"""Equation 5 for rows of any length, a tile at a time: for a bank in which no one shift fits all rows."""

import torch
from torch import Tensor

from lib.distributed.shard import Shard
from lib.method.discovery_grid import Grid


def streamed_entropies(memory: Tensor, temperature: float, grid: Grid, shard: Shard) -> Tensor:
    """As `discovery.similarity_entropy`, whose N x N products it takes whole, with a running maximum for each row.

    The tiles' rows are dealt out to the processes in turn, so that each row is summed in one place and order.

    Args:
        memory: the rows of the bank that are here.
        temperature: tau.
        grid: tiles and panels.
        shard: which rows `memory` is.

    Returns:
        (N,) entropies in nats, float32, the same on every process.
    """
    world = shard.world
    entropy = memory.new_zeros(shard.count)
    for start, stop in grid.panels(shard.count):
        rows = shard.fetch(memory, start, stop)
        own = [(a, part) for a, part in enumerate(rows.split(grid.tile_rows)) if a % world.size == world.rank]
        running = [_Running(part, temperature) for _, part in own]
        for other_start, other_stop in grid.panels(shard.count):
            columns = rows if other_start == start else shard.fetch(memory, other_start, other_stop)
            for each in running:
                for part in columns.split(grid.tile_rows):
                    each.add(part)
        for (a, part), each in zip(own, running):
            first = start + a * grid.tile_rows
            entropy[first : first + len(part)] = each.entropy()
    return world.all_reduce_sum(entropy)  # every other process has 0 there


class _Running:
    """Sums over the logits z of a tile of rows, seen from the largest so far, c: exp(z - c) and exp(z - c) (z - c)."""

    def __init__(self, rows: Tensor, temperature: float):
        self._rows, self._temperature = rows, temperature
        self._maximum = rows.new_full((len(rows), 1), float("-inf"))
        self._total, self._weighted = torch.zeros_like(self._maximum), torch.zeros_like(self._maximum)

    def add(self, part: Tensor) -> None:
        z = (self._rows / self._temperature) @ part.t()  # (T, T)
        higher = torch.maximum(self._maximum, z.amax(dim=1, keepdim=True))
        step = (self._maximum - higher).clamp_(min=-1e30)  # at first -inf, which times a sum of 0 would be NaN
        shrink = step.exp()
        self._weighted.add_(step * self._total).mul_(shrink)
        self._total.mul_(shrink)
        weights = z.sub_(higher).exp()
        self._total.add_(weights.sum(dim=1, keepdim=True))
        self._weighted.add_(z.mul_(weights).sum(dim=1, keepdim=True))
        self._maximum = higher

    def entropy(self) -> Tensor:
        return (self._total.log() - self._weighted / self._total).clamp_(min=0.0)[:, 0]
