"""Rows of one large matrix, a contiguous part of them in each process."""

import itertools
from typing import Optional

import torch
from torch import Tensor

from lib.distributed.world import World

BLOCK_ROWS = 2**16
"""Rows of a block, where all N rows pass through every process: 32 MiB at D = 128."""


class Shard:
    """The part of N rows that this process holds: `start` to `stop`, exclusive; it may be empty.

    Functions of the method take this process's rows (stop - start, D) and the `Shard` that numbers them.

    Args:
        world: the processes.
        count: N.
    """

    def __init__(self, world: World, count: int):
        self.world, self.count = world, count
        self._bounds = [0, *itertools.accumulate(world.shares(count))]
        self.start, self.stop = self._bounds[world.rank : world.rank + 2]

    @classmethod
    def part_of(cls, other: "Shard", rows: Tensor) -> "Shard":
        """A shard of selected rows of another matrix; each row stays in the process that holds it there.

        Args:
            rows: (N,) int64, ascending: their row numbers in the other matrix.
        """
        bounds = torch.searchsorted(rows, torch.tensor(other._bounds)).tolist()
        part = cls(other.world, len(rows))
        part._bounds = bounds
        part.start, part.stop = bounds[part.world.rank : part.world.rank + 2]
        return part

    @property
    def counts(self) -> list[int]:
        """The number of rows of each process."""
        return [stop - start for start, stop in zip(self._bounds, self._bounds[1:])]

    @classmethod
    def whole(cls, rows: Tensor) -> "Shard":
        """The shard of one process, which holds all rows."""
        return cls(World.alone(rows.device), len(rows))

    def outside(self, indices: Tensor) -> Tensor:
        """A bool tensor like `indices`: whether another process holds the row, or none does."""
        return (indices < self.start) | (indices >= self.stop)

    def fetch(self, own_rows: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the whole matrix on every process. All must ask for the same rows.

        Each owner broadcasts its part. With one process the result is a view.

        Args:
            own_rows: (stop - start, ...), the rows of this process.

        Returns:
            (stop - start, ...).
        """
        if self.world.size == 1:
            return own_rows[start:stop]
        fetched = torch.empty(stop - start, *own_rows.shape[1:], dtype=own_rows.dtype, device=own_rows.device)
        for rank in range(self.world.size):
            first, last = max(start, self._bounds[rank]), min(stop, self._bounds[rank + 1])
            if first < last:
                part = fetched[first - start : last - start]
                if rank == self.world.rank:
                    part.copy_(own_rows[first - self.start : last - self.start])
                self.world.broadcast(part, rank)
        return fetched

    def gather_to_first(self, own_rows: Tensor) -> Optional[Tensor]:
        """A copy of all rows (N, ...) in main memory of the first process; None on the others. All must call it.

        Args:
            own_rows: (stop - start, ...), the rows of this process.
        """
        if self.world.size == 1:
            return own_rows.to("cpu", copy=True)
        whole = None
        if self.world.is_first:
            whole = torch.empty(self.count, *own_rows.shape[1:], dtype=own_rows.dtype)
        for start in range(0, self.count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.count)
            block = self.fetch(own_rows, start, stop)
            if whole is not None:
                whole[start:stop] = block
        return whole
