"""The processes of a run and what they say to one another.

A run of one process is the same code: every exchange is then the identity and no process group is needed.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.distributed as dist
from torch import Tensor


class World:
    """P processes, this one of which has number `rank`.

    Every method that exchanges something must be called by all processes, in the same order. Tensors live on
    `device`, which the backend of the process group can reach: a GPU for NCCL, the CPU for Gloo.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device

    @classmethod
    def alone(cls, device: Optional[torch.device] = None) -> "World":
        """One process, P = 1."""
        return cls(0, 1, torch.device("cpu") if device is None else device)

    @classmethod
    def joined(cls, device: torch.device) -> "World":
        """The processes of torch.distributed's default group, which must be initialised."""
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def share_of(self, rank: int, count: int) -> slice:
        """The contiguous part of `count` rows that belongs to a process; the parts differ by one row at most."""
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def shares(self, count: int) -> list[int]:
        """How many of `count` rows each process has."""
        return [self.share_of(rank, count).stop - self.share_of(rank, count).start for rank in range(self.size)]

    def rows(self, count: int) -> slice:
        """This process's part of `count` rows."""
        return self.share_of(self.rank, count)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place; the same bits everywhere. Returns `tensor`, which must be contiguous."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The largest over processes of each element, in place. Returns `tensor`, which must be contiguous."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def counts(self, rows: int) -> list[int]:
        """How many rows each process has. Waits for the device."""
        if self.size == 1:
            return [rows]
        found = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        found[self.rank] = rows
        return self.all_reduce_sum(found).tolist()

    def gather_rows(self, tensor: Tensor, counts: Optional[Sequence[int]] = None) -> Tensor:
        """The rows of all processes, in the order of their ranks.

        Args:
            tensor: (R, ...); R may differ from process to process and be 0, the rest of the shape may not.
            counts: R of every process, where it is known; saves an exchange that waits for the device.

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
        if len(tensor) < most:  # all_gather wants equal shapes
            padded = tensor.new_zeros(most, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
        gathered = tensor.new_empty(self.size, most, *tensor.shape[1:])
        dist.all_gather(list(gathered.unbind()), padded)
        if min(counts) == most:
            return gathered.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(gathered, counts)])

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrites `tensor`, which must be contiguous, with that of process `source`; returns it."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def barrier(self) -> None:
        """Waits until every process has come here."""
        if self.size > 1:
            dist.barrier()
