"""Dropout that depends on the place in the run alone, not on the number of processes or on where it went on."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from datasets.pipeline import Batches
from lib.distributed.world import World
from lib.seeding import derive
from models.shared_dropout import SharedDropout


def with_same_masks(
    batches: Batches, network: nn.Module, world: World, sizes: Sequence[int], start: int, seed: int, *place: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; before each the default generators, of which dropout draws, are set to its place in the run.

    Args:
        batches: this process's shares of an epoch's batches, from number `start` on.
        network: which learns from them.
        world: the processes.
        sizes: of the batches of the epoch, in all processes together.
        seed: of the run.
        place: (round, epoch).
    """
    layers = [layer for layer in network.modules() if isinstance(layer, SharedDropout)]
    if not layers:
        yield from batches
        return
    for step, batch in enumerate(batches, start):
        torch.manual_seed(derive(seed, "dropout", *place, step))
        for layer in layers:
            layer.take(world.rows(sizes[step]).start, sizes[step])
        yield batch
