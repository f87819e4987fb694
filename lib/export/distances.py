"""From similarities to distances."""

from torch import Tensor


def cosine_distances(similarities: Tensor) -> Tensor:
    """1 - cosine, from 0 to 2; rounding can make a cosine slightly larger than 1."""
    return (1 - similarities).clamp_(min=0)
