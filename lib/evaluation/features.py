"""Features of a whole set of images from the frozen network."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lib.embedder import Embedder


@torch.inference_mode()
def extract(embedder: Embedder, batches: Iterable[tuple[Tensor, Tensor]], size: int, dim: int) -> Tensor:
    """Unit features of every image, in the order of their indices.

    Args:
        batches: pairs of images (B, 3, S, S) and row numbers (B,), each row once.
        size: how many rows there are.
        dim: D.

    Returns:
        (size, D) float32 on the network's device. The network is left in evaluation mode.
    """
    embedder.train(False)
    features = torch.empty(size, dim, device=embedder.device)
    for images, indices in batches:
        features[indices] = embedder(images)
    return features
