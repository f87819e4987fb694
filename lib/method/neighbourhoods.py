"""The anchors of a round with their neighbours, and the set N_k(i) of every image."""

from typing import Any, Optional

import torch
from torch import Tensor

from lib.method.objective import ABSENT


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

    def __init__(
        self,
        anchor_indexes: Tensor,
        instance_indexes: Tensor,
        position: Tensor,
        neighbours: Tensor,
        entropy: Tensor,
        consistency: Optional[float],
        recall: Optional[float] = None,
    ):
        self.anchor_indexes = anchor_indexes
        self.instance_indexes = instance_indexes
        self.position = position
        self.neighbours = neighbours
        self.entropy = entropy
        self.consistency = consistency
        self.recall = recall

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

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint's entry `ANs_discovery`, with the keys of the authors' release."""
        return {
            "anchor_indexes": self.anchor_indexes.cpu(),
            "instance_indexes": self.instance_indexes.cpu(),
            "position": self.position.cpu(),
            "neighbours": self.neighbours.cpu(),
            "entropy": self.entropy.cpu(),
            "consistency": self.consistency,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Neighbourhoods":
        """The inverse of `state_dict`."""
        tensors: dict[str, Any] = {name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)}
        return cls(**tensors, consistency=state["consistency"])
