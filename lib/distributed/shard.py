"""Rows 0 to N - 1 of one large matrix, a contiguous part of them in each process."""

import itertools
from typing import Optional

import torch
from torch import Tensor

from lib.distributed.world import World

BLOCK_ROWS = 2**16
"""Rows that pass through every process at a time, where all N must: 32 MiB at D = 128."""


class Shard:
    """Which of N rows this process holds: rows `start` to `stop`, the last not included; perhaps none.

    Functions of the method take the rows of this process, (stop - start, D), and a `Shard` that says which they are.

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
        """Some rows of another matrix, in their order, each where it is there.

        Args:
            rows: (N,) int64, ascending: their numbers in the other one.
        """
        bounds = torch.searchsorted(rows, torch.tensor(other._bounds)).tolist()
        part = cls(other.world, len(rows))
        part._bounds = bounds
        part.start, part.stop = bounds[part.world.rank : part.world.rank + 2]
        return part

    @property
    def counts(self) -> list[int]:
        """How many rows each process has."""
        return [stop - start for start, stop in zip(self._bounds, self._bounds[1:])]

    @classmethod
    def whole(cls, rows: Tensor) -> "Shard":
        """All rows are here: one process."""
        return cls(World.alone(rows.device), len(rows))

    def outside(self, indices: Tensor) -> Tensor:
        """Whether each row number is none of this process's, as a bool tensor of the shape of `indices`."""
        return (indices < self.start) | (indices >= self.stop)

    def fetch(self, own_rows: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the whole matrix, on every process; all must ask for the same ones.

        Each owner sends its part to all. With one process it is a view, nothing is copied.

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
        """A copy of all rows (N, ...) on the CPU of the first process, block by block; None on the others.

        Args:
            own_rows: (stop - start, ...), the rows of this process. All processes must call it.
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
