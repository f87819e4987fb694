"""Rows 0 to N - 1 of one large matrix, a contiguous part of them in each process."""

import torch
from torch import Tensor

from lib.distributed.world import World


class Shard:
    """Which of N rows this process holds: rows `start` to `stop`, the last not included; perhaps none.

    Functions of the method take the rows of this process, (stop - start, D), and a `Shard` that says which they are.
    """

    def __init__(self, world: World, count: int):
        own = world.rows(count)
        self.world, self.count, self.start, self.stop = world, count, own.start, own.stop

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
            owned = self.world.share_of(rank, self.count)
            first, last = max(start, owned.start), min(stop, owned.stop)
            if first < last:
                part = fetched[first - start : last - start]
                if rank == self.world.rank:
                    part.copy_(own_rows[first - self.start : last - self.start])
                self.world.broadcast(part, rank)
        return fetched
