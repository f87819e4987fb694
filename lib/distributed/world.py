"""The processes of a run, their collectives, and the rows of a matrix that each holds.

With one process every collective is the identity, and no process group is needed.
"""

import datetime
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor

LONG_TIMEOUT = datetime.timedelta(days=1)
"""How long processes wait for another one that downloads files or clusters features."""

BLOCK_ROWS = 2**16
"""Rows of a block, where all N rows pass through every process: 32 MiB at D = 128."""

_SMALL = 2**14
"""Elements up to which processes all-gather tensors and reduce them locally."""


def int_digest(data: bytes) -> int:
    """A hash of data that fits int64, to compare processes by `World.all_gather_ints`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big")


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of P `processes`: of B rows those from B * rank // P up to B * (rank + 1) // P.

    The parts of all processes, in the order of their ranks, are the whole. Their sizes differ by one row at most,
    and with fewer rows than processes some parts are empty.
    """

    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank {self.rank} of {self.processes} processes")

    def span(self, count: int) -> slice:
        """Where the part lies in `count` rows."""
        return slice(count * self.rank // self.processes, count * (self.rank + 1) // self.processes)

    def part(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a tensor."""
        return rows[self.span(len(rows))]


WHOLE = Share()
"""Everything: the share of the only process."""


class World:
    """P processes, of which this one has rank `rank`.

    All processes must call every collective, in the same order. Tensors live on
    `device`, which the backend of the process group can reach: a GPU for NCCL, the CPU for Gloo.

    Attributes:
        cpu_group: a Gloo process group for everything outside the computation; None for one process. Its timeout is
            `LONG_TIMEOUT`, and a process that ends is noticed at once.
    """

    def __init__(self, rank: int, size: int, device: torch.device, cpu_group: Optional[Any] = None):
        self.rank, self.size, self.device, self.cpu_group = rank, size, device, cpu_group

    @classmethod
    def alone(cls, device: Optional[torch.device] = None) -> "World":
        """One process, P = 1."""
        return cls(0, 1, torch.device("cpu") if device is None else device)

    @classmethod
    def joined(cls, device: torch.device) -> "World":
        """The processes of torch.distributed's default group, which must be initialised. All must call it."""
        cpu_group = dist.new_group(timeout=LONG_TIMEOUT, backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device, cpu_group)

    def __deepcopy__(self, memo: dict) -> "World":
        """Copies of a network share the world: a process group cannot be copied."""
        return self

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes files and logs."""
        return self.rank == 0

    def shares(self, count: int) -> list[int]:
        """How many of `count` rows each process takes."""
        spans = [Share(rank, self.size).span(count) for rank in range(self.size)]
        return [span.stop - span.start for span in spans]

    def rows(self, count: int) -> slice:
        """This process's part of `count` rows."""
        return Share(self.rank, self.size).span(count)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place, the same bits on all. Returns `tensor`, which must be contiguous."""
        if self._is_small(tensor):
            return tensor.copy_(self._all_gather(tensor).sum(dim=0))
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over the processes, in place. Returns `tensor`, which must be contiguous."""
        if self._is_small(tensor):
            return tensor.copy_(self._all_gather(tensor).amax(dim=0))
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def _is_small(self, tensor: Tensor) -> bool:
        """Whether to all-gather and reduce locally: Gloo's all-reduce takes two rounds, twice the time."""
        return self.size > 1 and tensor.device.type == "cpu" and 0 < self.size * tensor.numel() <= _SMALL

    def _all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, which have one shape, as (P, ...)."""
        gathered = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(gathered.unbind()), tensor)
        return gathered

    def counts(self, rows: int) -> list[int]:
        """The number of rows of each process. Synchronises with the device."""
        if self.size == 1:
            return [rows]
        found = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        found[self.rank] = rows
        return self.all_reduce_sum(found).tolist()

    def gather_rows(self, tensor: Tensor, counts: Optional[Sequence[int]] = None) -> Tensor:
        """All-gather rows, in the order of the ranks.

        Args:
            tensor: (R, ...); R may differ among processes and be 0, the rest of the shape may not.
            counts: R of every process, if known: saves an exchange that synchronises with the device.

        Returns:
            (sum of R, ...); `tensor` itself if P = 1.
        """
        if self.size == 1:
            return tensor
        counts = self.counts(len(tensor)) if counts is None else counts
        most = max(counts)
        if most == 0:
            return tensor
        padded = tensor.contiguous()
        if len(tensor) < most:  # all_gather needs equal shapes
            padded = tensor.new_zeros(most, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
        gathered = tensor.new_empty(self.size, most, *tensor.shape[1:])
        dist.all_gather(list(gathered.unbind()), padded)
        if min(counts) == most:
            return gathered.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(gathered, counts)])

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite `tensor`, which must be contiguous, with that of rank `source`; returns it."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def all_gather_ints(self, numbers: Sequence[int]) -> list[list[int]]:
        """The int64 numbers of every process, by rank; all pass equally many. Through `cpu_group`."""
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(list(numbers), dtype=torch.int64)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own, group=self.cpu_group)
        return [each.tolist() for each in gathered]

    def long_barrier(self) -> None:
        """`barrier` for processes that may arrive hours apart. Through `cpu_group`."""
        if self.size > 1:
            dist.barrier(group=self.cpu_group)

    def barrier(self) -> None:
        """Wait until every process has arrived."""
        if self.size > 1:
            dist.barrier()


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
