"""One epoch of training steps, and the progress of an epoch that is unfinished."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, Protocol

import torch
from torch import Tensor, nn

from lib.distributed.world import World
from lib.errors import RunError
from lib.method.neighbourhoods import Neighbourhoods
from lib.seeding import derive
from lib.training.step import FiniteWatch, NotFinite
from models.shared_dropout import SharedDropout

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images (B, 3, S, S) and their row numbers (B,)."""


class StepFunction(Protocol):
    """The interface of `lib.training.step.Step` and of `lib.training.cuda_graph.CapturedStep`."""

    @property
    def watch(self) -> FiniteWatch:
        """The watch for non-finite losses and gradients."""

    def __call__(
        self, images: Tensor, members: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """As `Step.__call__`."""


class NotFiniteError(RunError):
    """The loss or gradient of a batch is not finite; from there on weights and bank are invalid."""

    def __init__(self, found: NotFinite):
        super().__init__(f"the {found.what} is not finite at step {found.step + 1}")
        self.found = found


@dataclass(frozen=True)
class EpochProgress:
    """Progress within an unfinished epoch.

    Attributes:
        step: number of batches trained on.
        images: number of images in these batches.
        batches: number of batches in the whole epoch.
        loss_sum: sum of the loss over these images.
        seconds: their training time, summed over all starts of the run.
    """

    step: int = 0
    images: int = 0
    batches: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def check_fits(self, batch_sizes: tuple[int, ...], iter_size: int) -> None:
        """Check that an epoch of these batches can be resumed here.

        Raises:
            ValueError: the epoch began with other batches, or the next batch would not begin an optimiser step.
        """
        if self.step == 0:
            return
        same = self.batches == len(batch_sizes) and self.images == sum(batch_sizes[: self.step])
        if not same or not 0 < self.step < self.batches or self.step % iter_size != 0:
            raise ValueError(
                f"it was written within an epoch, after {self.step} of {self.batches} batches, and the epoch cannot be "
                "resumed with other ones: use the --batch-size and --iter-size it was made with (with "
                "--no-sync-bn as many processes, too), or a checkpoint from the end of an epoch"
            )


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the images of an epoch, and the time it took.

    In a resumed epoch `images` and `rate_seconds` count from the resume, `seconds` from the epoch's start.
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
    before: EpochProgress = EpochProgress(),
    between_steps: Callable[[int, Callable[[], EpochProgress]], None] = lambda step, progress: None,
) -> EpochResult:
    """Train on every batch once.

    Args:
        step: trains on one batch; the network is in training mode.
        batches: the remaining batches of the epoch, after those in `before`.
        batch_sizes: images in each batch of the epoch, in all processes together.
        iter_size: batches of one optimiser step, whose gradient is the mean over their images; the last may have fewer.
        report_every: steps between calls of `report(images since the last call, loss of the batch)`, which is also
            called after the last step. Nothing else waits for the device.
        between_steps: called as `between_steps(batches done, progress)` between optimiser steps, where the run may be
            saved or stopped; not after the last. `progress()` waits for the device.

    Raises:
        NotFiniteError: a loss or a gradient is not finite.
    """
    started, unreported = time.perf_counter(), 0
    step.watch.begin(before.step)
    loss_sum = torch.tensor(before.loss_sum, dtype=torch.float64)

    def progress() -> EpochProgress:
        _check(step.watch)
        seconds = before.seconds + time.perf_counter() - started
        return EpochProgress(done, sum(batch_sizes[:done]), len(batch_sizes), loss_sum.item(), seconds)

    for done, (images, indices) in enumerate(batches, start=before.step + 1):
        size, is_end = batch_sizes[done - 1], done == len(batch_sizes)
        images_of_step, first, last = _optimiser_step(done, batch_sizes, iter_size)
        loss = step(images, neighbourhoods.members(indices), size, size / images_of_step, first, last)
        loss_sum = loss_sum.to(loss.device) + loss.double() * size
        unreported += size
        if done % report_every == 0 or is_end:
            _check(step.watch)
            report(unreported, loss.item())
            unreported = 0
        if last and not is_end:
            between_steps(done, progress)
    seconds = time.perf_counter() - started
    mean_loss = loss_sum.item() / sum(batch_sizes)
    return EpochResult(mean_loss, sum(batch_sizes[before.step :]), before.seconds + seconds, seconds)


def _optimiser_step(done: int, batch_sizes: tuple[int, ...], iter_size: int) -> tuple[int, bool, bool]:
    """The images of the optimiser step of batch `done`, counted from 1, and whether the batch begins and ends it."""
    start = (done - 1) // iter_size * iter_size
    batches = batch_sizes[start : start + iter_size]
    return sum(batches), done == start + 1, done == start + len(batches)


def _check(watch: FiniteWatch) -> None:
    found = watch.found()
    if found is not None:
        raise NotFiniteError(found)


def with_seeded_dropout(
    batches: Batches, network: nn.Module, world: World, sizes: Sequence[int], start: int, seed: int, *context: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches and, before each, seeds the default generators, from which dropout draws, by its position.

    Dropout then depends on the position in the run alone, not on the number of processes or on a resume.

    Args:
        batches: this process's parts of an epoch's batches, from number `start` on.
        network: trained on them.
        world: the processes.
        sizes: of the batches of the epoch, in all processes together.
        seed: of the run.
        context: (round, epoch).
    """
    layers = [layer for layer in network.modules() if isinstance(layer, SharedDropout)]
    if not layers:
        yield from batches
        return
    for step, batch in enumerate(batches, start):
        torch.manual_seed(derive(seed, "dropout", *context, step))
        for layer in layers:
            layer.set_rows(world.rows(sizes[step]).start, sizes[step])
        yield batch
