"""One epoch of training steps."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable, Protocol

import torch
from torch import Tensor

from lib.errors import RunError
from lib.method.neighbourhoods import Neighbourhoods
from lib.training.epoch_progress import Underway
from lib.training.finite import FiniteWatch, NotFinite

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images (B, 3, S, S) and their row numbers (B,)."""


class StepFunction(Protocol):
    """`lib.training.step.Step`, or something that does the same faster."""

    @property
    def watch(self) -> FiniteWatch:
        """What has seen every batch."""

    def __call__(
        self, images: Tensor, members: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """As `Step.__call__`."""


class NotFiniteError(RunError):
    """Loss or gradient of a batch is not finite; weights and bank are of no use from there on."""

    def __init__(self, found: NotFinite):
        super().__init__(f"the {found.what} is not finite at step {found.step + 1}")
        self.found = found


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the images of the epoch, and how fast they went by.

    Where the epoch was gone on with, `images` and `rate_seconds` are those of this process, `seconds` those of all.
    """

    loss: float
    images: int
    seconds: float
    rate_seconds: float


def train_epoch(
    step: StepFunction,
    neighbourhoods: Neighbourhoods,
    batches: Batches,
    batch_sizes: tuple[int, ...],
    iter_size: int = 1,
    report_every: int = 20,
    report: Callable[[int, float], None] = lambda images, loss: None,
    begun: Underway = Underway(),  # noqa: B008  it cannot be changed
    pause: Callable[[int, Callable[[], Underway]], None] = lambda step, underway: None,
) -> EpochResult:
    """Train on every batch once.

    Args:
        step: trains on one batch; the network is in training mode.
        batches: those after `begun`.
        batch_sizes: how many images each batch of the epoch holds, in all processes together.
        iter_size: batches whose gradients make one optimiser step. A group's gradient is the mean over
            its images, whatever the sizes of its batches; a last, smaller group makes a step of its own.
        report_every: steps between calls of `report(images since the last call, loss of the batch)`, and one at
            the end. Only then the device is waited for.
        begun: what was done of the epoch before.
        pause: called as `pause(batches done, underway)` between optimiser steps, where the run may be saved or
            stopped; not after the last. `underway()` is what the epoch comes to so far, and waits for the device.

    Raises:
        NotFiniteError: a loss or a gradient is not finite.
    """
    started = time.perf_counter()
    step.watch.begin(begun.step)
    unreported = 0
    loss_sum = None if begun.step == 0 else torch.tensor(begun.loss_sum, dtype=torch.float64)

    def underway() -> Underway:
        _check(step.watch)
        seconds = begun.seconds + time.perf_counter() - started
        return Underway(done, sum(batch_sizes[:done]), len(batch_sizes), loss_sum.item(), seconds)

    for done, (images, indices) in enumerate(batches, start=begun.step + 1):
        group = (done - 1) // iter_size
        images_in_group = sum(batch_sizes[group * iter_size : (group + 1) * iter_size])
        first = (done - 1) % iter_size == 0
        end = done == len(batch_sizes)
        last = done % iter_size == 0 or end
        size = batch_sizes[done - 1]
        loss = step(images, neighbourhoods.members(indices), size, size / images_in_group, first, last)

        weighted = loss.double() * size
        loss_sum = weighted if loss_sum is None else loss_sum.to(weighted.device) + weighted
        unreported += size
        if done % report_every == 0 or end:
            _check(step.watch)
            report(unreported, loss.item())
            unreported = 0
        if last and not end:
            pause(done, underway)
    seconds = time.perf_counter() - started
    mean_loss = loss_sum.item() / sum(batch_sizes)
    return EpochResult(mean_loss, sum(batch_sizes[begun.step :]), begun.seconds + seconds, seconds)


def _check(watch: FiniteWatch) -> None:
    found = watch.found()
    if found is not None:
        raise NotFiniteError(found)
