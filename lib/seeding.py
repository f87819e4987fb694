"""Samples: random numbers as a function of the seed and of where in the run they are drawn, and even spacing.

Nothing depends on how many numbers were drawn before: a resumed run needs only to know where it is.
"""

import hashlib
from typing import Union

import torch


def derive(seed: int, *place: Union[int, str]) -> int:
    """A 63-bit seed for one place of a run, e.g. derive(seed, "order", round, epoch)."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *place: Union[int, str]) -> torch.Generator:
    """A CPU generator for one place of a run."""
    return torch.Generator().manual_seed(derive(seed, *place))


def even_sample(count: int, largest: int) -> torch.Tensor:
    """(S,) int64, all of `count` rows or `largest` of them at even distances: a function of the two numbers."""
    if count <= largest:
        return torch.arange(count)
    return torch.div(torch.arange(largest) * count, largest, rounding_mode="floor")
