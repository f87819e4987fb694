"""The least that a training step can do: forward, backward and optimiser step, without images, loss or bank."""

import torch
from torch import Tensor

from lib.nn.embedder import Embedder


class BareStep:
    """Called like `lib.training.step.Step`, so that `CapturedStep` records it as it records ours: steps that were
    launched one kernel at a time would be no limit on a GPU.

    Args:
        embedder: the network.
        optimizer: of its parameters.
    """

    def __init__(self, embedder: Embedder, optimizer: torch.optim.Optimizer):
        self.embedder, self.optimizer = embedder, optimizer

    def __call__(
        self, images: Tensor, upstream: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """Images (B, 3, S, S), and the gradient (B, D) of the features; the rest is not used. Returns a scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        features = self.embedder(images)
        features.backward(upstream)
        self.optimizer.step()
        return features.detach()[0, 0]
