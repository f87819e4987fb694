"""Dropout where several processes train together: each image has a mask of its own."""

from collections.abc import Iterator

import torch
from torch import Tensor

from datasets.pipeline import Batches
from lib.seeding import derive


def with_own_masks(batches: Batches, start: int, seed: int, *place: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; before each the default generators, of which dropout draws, are set to its place in the run.

    Processes start from the same random state, and a checkpoint holds that of the first alone. So neither can be gone
    on with: the masks of all would be equal.

    Args:
        batches: of an epoch, from number `start` on.
        seed: of the run.
        place: (rank, round, epoch).
    """
    for step, batch in enumerate(batches, start):
        torch.manual_seed(derive(seed, "dropout", *place, step))
        yield batch
