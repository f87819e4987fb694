"""Features of a whole set of images from the frozen network."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lib.evaluation.feature_space import PLAIN, FeatureSpace
from lib.nn.embedder import Embedder


@torch.inference_mode()
def extract(
    embedder: Embedder,
    batches: Iterable[tuple[Tensor, Tensor]],
    rows: slice,
    dim: int,
    space: FeatureSpace = PLAIN,
) -> Tensor:
    """Unit features of every image, in the order of their indices.

    Args:
        batches: pairs of images (B, 3, S, S) and row numbers (B,), each row once.
        rows: which rows come, from its start up to its stop: all of a set, or one process's share of it.
        dim: D, numbers of a feature.
        space: of whose level they are; they are not whitened here.

    Returns:
        (stop - start, D) float32 on the network's device. The network is left in evaluation mode.
    """
    frozen = space.frozen(embedder)
    features = torch.empty(rows.stop - rows.start, dim, device=embedder.device)
    for images, indices in batches:
        features[indices - rows.start] = frozen(images)
    return features
