"""The memory bank: one feature row for every training image."""

import math
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MemoryBank(nn.Module):
    """Holds M (N, D), the remembered features, as a buffer: saved with the run, never given a gradient.

    Args:
        size: N, the number of training images.
        dim: D, the feature length.
        momentum: eta of equation 8, the share of the old row that is kept, in [0, 1).
        generator: source of the first, random rows.
    """

    memory: Tensor

    def __init__(self, size: int, dim: int, momentum: float, generator: Optional[torch.Generator] = None):
        super().__init__()
        self.momentum = momentum
        # Uniform in (-s, s) with s = 1 / sqrt(D / 3): rows of length about 1, deliberately not normalised
        # (released code). Every row is replaced by a unit vector the first time its image is seen.
        bound = 1.0 / math.sqrt(dim / 3.0)
        rows = torch.rand(size, dim, generator=generator)
        self.register_buffer("memory", rows.mul_(2 * bound).sub_(bound))

    def __len__(self) -> int:
        return self.memory.shape[0]

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor) -> None:
        """Equation 8: m_i <- normalise(eta * m_i + (1 - eta) * x_i).

        Args:
            indices: (B,) int64, which rows; no row twice.
            features: (B, D) float32, the features the loss saw.
        """
        rows = self.memory[indices]  # (B, D)
        mixed = self.momentum * rows + (1 - self.momentum) * features
        self.memory[indices] = F.normalize(mixed, dim=1)
