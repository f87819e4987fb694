"""The lower limit of a training step: forward, backward and optimiser step, without images, loss or bank."""

import torch
from torch import Tensor

from lib.nn.embedder import Embedder


class BareStep:
    """Has the interface of `lib.training.step.Step`, so that `CapturedStep` captures it as it captures ours: launched
    kernel by kernel, it would be no lower limit on a GPU.

    Args:
        embedder: the network.
        optimizer: of its parameters.
    """

    def __init__(self, embedder: Embedder, optimizer: torch.optim.Optimizer):
        self.embedder, self.optimizer = embedder, optimizer

    def __call__(
        self, images: Tensor, upstream: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """Images (B, 3, S, S), and the gradient (B, D) of the features; the rest is unused. Returns a scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        features = self.embedder(images)
        features.backward(upstream)
        self.optimizer.step()
        return features.detach()[0, 0]
