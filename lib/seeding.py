"""Random numbers as a function of the seed and a seed context, the position in the run at which they are drawn.

Nothing depends on how many numbers were drawn before: a resumed run needs only its position.
"""

import hashlib
from typing import Union

import torch


def derive(seed: int, *context: Union[int, str]) -> int:
    """A 63-bit seed for a seed context, e.g. derive(seed, "order", round, epoch)."""
    text = "/".join(map(str, (seed, *context)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *context: Union[int, str]) -> torch.Generator:
    """A CPU generator for a seed context."""
    return torch.Generator().manual_seed(derive(seed, *context))
