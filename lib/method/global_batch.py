"""The batch of all processes together, which every process's part of the bank must see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from lib.distributed.world import World


@dataclass(frozen=True)
class GlobalBatch:
    """B images, in the order of the processes; `own` are this process's.

    Attributes:
        features: (B, D), without gradient.
        members: (B, S) int64, their sets, each beginning with the image itself.
        own: which of the B are here; perhaps none.
    """

    features: Tensor
    members: Tensor
    own: slice

    @classmethod
    def gather(
        cls, features: Tensor, members: Tensor, world: World, counts: Optional[Sequence[int]] = None
    ) -> "GlobalBatch":
        """From the parts of all processes, each of which must call. With one process nothing is copied.

        Args:
            features: (B_r, D), members: (B_r, S), of this process; B_r may be 0, but not on all.
            counts: B_r of every process, where they are known: saves waiting for the device.
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
        """(B,) int64, the images' row numbers."""
        return self.members[:, 0]
