"""Images in, unit features out: the network with the memory format and precision it runs in."""

from typing import Optional

import torch
from torch import Tensor, nn

from lib.precision import autocast


class Embedder:
    """Runs a network.

    Args:
        network: images (B, 3, S, S) to unit features (B, D), float32 whatever the precision.
        device: where it runs.
        dtype: of autocast, or None for plain float32.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: Optional[torch.dtype] = None):
        # convolutions read pixels with their channels side by side; state dicts are not affected
        self.network = network.to(device=device, memory_format=torch.channels_last)
        self.device, self.dtype = device, dtype

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.dtype):
            return self.network(images)

    def train(self, mode: bool = True) -> None:
        self.network.train(mode)
