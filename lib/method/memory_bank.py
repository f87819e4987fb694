"""The memory bank: one feature row for every training image, sharded over the processes; and the global batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.distributed.world import BLOCK_ROWS, Shard, World


class MemoryBank(nn.Module):
    """The memory bank M (N, D), a feature row for each training image: a buffer without gradient.

    With P processes each holds about N / P rows as `memory`; `shard` numbers them.

    Args:
        size: N, the number of training images.
        dim: D, the feature length.
        momentum: weight of the old row, in [0, 1): 1 - eta, since in equation 8 eta weighs the new feature.
        generator: of the initial rows, seeded alike on every process; the rows do not depend on P.
        world: the processes; None: this one alone.
    """

    memory: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        momentum: float,
        generator: Optional[torch.Generator] = None,
        world: Optional[World] = None,
    ):
        super().__init__()
        self.momentum = momentum
        self.size = size
        self.shard = Shard(World.alone() if world is None else world, size)
        # Uniform in (-s, s) with s = 1 / sqrt(D / 3): rows of length about 1, not normalised, as in the authors'
        # code. The first update of a row makes it a unit vector.
        bound = 1.0 / math.sqrt(dim / 3.0)
        rows = self._draw_own_rows(dim, generator)
        self.register_buffer("memory", rows.mul_(2 * bound).sub_(bound))

    def _draw_own_rows(self, dim: int, generator: Optional[torch.Generator]) -> Tensor:
        """This process's rows of N x D random numbers in (0, 1); every process draws all of them."""
        rows = torch.empty(self.shard.stop - self.shard.start, dim)
        for start in range(0, self.size, BLOCK_ROWS):
            block = torch.rand(min(BLOCK_ROWS, self.size - start), dim, generator=generator)
            first, last = max(start, self.shard.start), min(start + len(block), self.shard.stop)
            if first < last:
                rows[first - self.shard.start : last - self.shard.start] = block[first - start : last - start]
        return rows

    def __len__(self) -> int:
        return self.size

    @property
    def start(self) -> int:
        """The number of this process's first row."""
        return self.shard.start

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor) -> None:
        """Equation 8: m_i <- normalise(momentum * m_i + (1 - momentum) * x_i).

        The authors' code normalises the row; the paper's equation does not show it.

        Args:
            indices: (B,) int64, row numbers of all processes' images, no row twice; each process updates its own.
            features: (B, D) float32, the features that the loss was computed from.
        """
        if self.shard.world.size > 1:
            own = torch.nonzero(~self.shard.outside(indices)).flatten()
            indices, features = indices[own] - self.start, features[own]
        rows = self.memory[indices]  # (B, D)
        mixed = self.momentum * rows + (1 - self.momentum) * features
        self.memory[indices] = F.normalize(mixed, dim=1)

    def load_whole(self, memory: Tensor) -> None:
        """Load this process's rows of a whole bank (N, D), gathered from any number of processes.

        Raises:
            ValueError: the bank has another shape.
        """
        expected = (self.size, self.memory.shape[1])
        if tuple(memory.shape) != expected:
            raise ValueError(f"the memory bank has shape {tuple(memory.shape)}, expected {expected}")
        self.memory.copy_(memory[self.shard.start : self.shard.stop])


@dataclass(frozen=True)
class GlobalBatch:
    """The B images of a step on all processes, in the order of the ranks.

    Attributes:
        features: (B, D), without gradient.
        members: (B, S) int64, their sets, each beginning with the image itself.
        own: this process's part of the B; it may be empty.
    """

    features: Tensor
    members: Tensor
    own: slice

    @classmethod
    def gather(
        cls, features: Tensor, members: Tensor, world: World, counts: Optional[Sequence[int]] = None
    ) -> "GlobalBatch":
        """All-gather the parts of all processes; all must call it. With one process nothing is copied.

        Args:
            features: (B_r, D), members: (B_r, S), of this process; B_r may be 0, but not on all.
            counts: B_r of every process, if known: saves a synchronisation with the device.
        """
        features = features.detach()
        if world.size == 1:
            return cls(features, members, slice(0, len(features)))
        counts = world.counts(len(features)) if counts is None else counts
        start = sum(counts[: world.rank])
        return cls(
            world.gather_rows(features, counts),
            world.gather_rows(members, counts),
            slice(start, start + counts[world.rank]),
        )

    @property
    def indices(self) -> Tensor:
        """(B,) int64, the images' rows in the bank."""
        return self.members[:, 0]
