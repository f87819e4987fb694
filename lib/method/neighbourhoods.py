"""The anchors of a round with their neighbours, and the set N_k(i) of every image."""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from lib.method.objective import ABSENT

SAVED = ("anchor_indexes", "instance_indexes", "position", "neighbours", "entropy", "consistency")
"""The attributes that a checkpoint stores as `ANs_discovery`, named as in the authors' release."""


@dataclass(eq=False)
class Neighbourhoods:
    """The partition of the N training images into anchors, each with K neighbours, and instances.

    Attributes (all on one device):
        anchor_indexes: (A,) int64, lowest entropy first.
        instance_indexes: (N - A,) int64, ascending: the images that are not anchors.
        position: (N,) int64, the row of `neighbours` of image i, or -1 if i is an instance.
        neighbours: (A, K) int64, nearest first, the anchor itself not among them.
        entropy: (N,) float32, in nats; NaN in round 0, which does not need it.
        consistency: share of (anchor, neighbour) pairs with equal labels; None without labels or anchors.
        recall: share of sampled anchors whose nearest row an approximate search found; None for an exact search.
            It is logged, not saved.
    """

    anchor_indexes: Tensor
    instance_indexes: Tensor
    position: Tensor
    neighbours: Tensor
    entropy: Tensor
    consistency: Optional[float]
    recall: Optional[float] = None

    @classmethod
    def none(cls, size: int, k: int, device: torch.device) -> "Neighbourhoods":
        """Round 0: every image is an instance."""
        anchors = torch.empty(0, dtype=torch.int64, device=device)
        neighbours = torch.empty(0, k, dtype=torch.int64, device=device)
        return cls.of(anchors, neighbours, torch.full((size,), float("nan"), device=device), None)

    @classmethod
    def of(
        cls,
        anchors: Tensor,
        neighbours: Tensor,
        entropy: Tensor,
        consistency: Optional[float],
        recall: Optional[float] = None,
    ) -> "Neighbourhoods":
        """From anchors (A,), neighbours (A, K) and entropy (N,)."""
        position = torch.full((len(entropy),), ABSENT, dtype=torch.int64, device=entropy.device)
        position[anchors] = torch.arange(len(anchors), device=entropy.device)
        instances = torch.nonzero(position == ABSENT).flatten()
        return cls(anchors, instances, position, neighbours, entropy, consistency, recall)

    def __str__(self) -> str:
        """What discovery found, in one line."""
        entropy, images = self.entropy[self.anchor_indexes], len(self.entropy)
        if len(entropy) == 0:
            return f"no anchors, {images} instances"
        text = f"{len(entropy)} anchors of {images} images, "
        text += f"entropy up to {entropy.max().item():.3f} (log N is {math.log(images):.3f})"
        if self.recall is not None:
            text += f", {100 * self.recall:.2f} % of nearest neighbours are the true ones"
        if self.consistency is not None:
            text += f", consistency {100 * self.consistency:.2f} %"
        return text

    def members(self, indices: Tensor) -> Tensor:
        """The set N_k(i) of each image of a batch: itself first, then its neighbours if it is an anchor.

        Args:
            indices: (B,) int64.

        Returns:
            (B, 1 + K) int64, padded with `ABSENT` for instances; (B, 1) if there are no anchors.
        """
        own = indices[:, None]
        if len(self.anchor_indexes) == 0:
            return own
        row = self.position[indices]  # (B,)
        neighbours = self.neighbours[row.clamp(min=0)]  # (B, K)
        return torch.cat([own, neighbours.masked_fill((row == ABSENT)[:, None], ABSENT)], dim=1)
