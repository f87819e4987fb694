"""One epoch of training steps."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

from torch import Tensor

from lib.errors import RunError
from lib.method.neighbourhoods import Neighbourhoods

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images (B, 3, S, S) and their row numbers (B,)."""

StepFunction = Callable[[Tensor, Tensor, int, float, bool, bool], Tensor]
"""`lib.training.step.Step`, or something that does the same faster."""


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the images of the epoch, and how fast they went by."""

    loss: float
    images: int
    seconds: float


def train_epoch(
    step: StepFunction,
    neighbourhoods: Neighbourhoods,
    batches: Batches,
    batch_sizes: tuple[int, ...],
    iter_size: int = 1,
    report_every: int = 20,
    report: Callable[[int, float], None] = lambda images, loss: None,
) -> EpochResult:
    """Train on every batch once.

    Args:
        step: trains on one batch; the network is in training mode.
        batch_sizes: how many images each batch holds, in all processes together.
        iter_size: batches whose gradients make one optimiser step. A group's gradient is the mean over
            its images, whatever the sizes of its batches; a last, smaller group makes a step of its own.
        report_every: steps between calls of `report(images since the last call, loss of the batch)`, and one at
            the end. Only then the device is waited for.

    Raises:
        RunError: the loss is not finite.
    """
    started = time.perf_counter()
    unreported = 0
    loss_sum = None
    for number, (images, indices) in enumerate(batches):
        group = number // iter_size
        images_in_group = sum(batch_sizes[group * iter_size : (group + 1) * iter_size])
        first = number % iter_size == 0
        last = (number + 1) % iter_size == 0 or number + 1 == len(batch_sizes)
        size = batch_sizes[number]
        loss = step(images, neighbourhoods.members(indices), size, size / images_in_group, first, last)

        weighted = loss.double() * size
        loss_sum = weighted if loss_sum is None else loss_sum + weighted
        unreported += size
        if (number + 1) % report_every == 0 or number + 1 == len(batch_sizes):
            report(unreported, _finite(loss.item(), number))
            unreported = 0
    mean_loss = _finite(loss_sum.item() / sum(batch_sizes), len(batch_sizes) - 1)
    return EpochResult(mean_loss, sum(batch_sizes), time.perf_counter() - started)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss} at step {step + 1}; try a lower --base-lr or a higher --npc-temperature "
            "(the last checkpoint is from before this epoch)"
        )
    return loss
