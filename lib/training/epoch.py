"""One epoch of training steps, and the progress of one that is unfinished."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Protocol

import torch
from torch import Tensor, nn

from datasets.pipeline import Batches
from lib.distributed.world import World
from lib.errors import RunError
from lib.method.neighbourhoods import Neighbourhoods
from lib.seeding import derive
from lib.training.step import FiniteWatch, NotFinite
from models.shared_dropout import SharedDropout


@dataclass(frozen=True)
class Underway:
    """How far an epoch is.

    Attributes:
        step: batches learnt from.
        images: in these.
        batches: of the whole epoch.
        loss_sum: over these images.
        seconds: they took, in all processes that had a part in it, one after the other.
    """

    step: int = 0
    images: int = 0
    batches: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores under `underway`; the step has a key of its own."""
        return {
            "images": self.images,
            "batches": self.batches,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, step: int, state: dict[str, Any]) -> "Underway":
        """The inverse of `state`.

        Raises:
            TypeError, KeyError: something is missing, or is no number.
        """
        whole = {name: int(state[name]) for name in ("images", "batches")} if step else {}
        return cls(step, **whole, **{name: float(state[name]) for name in ("loss_sum", "seconds")}) if step else cls()

    def check_fits(self, batch_sizes: tuple[int, ...], iter_size: int) -> None:
        """Whether an epoch of these batches can be gone on with.

        Raises:
            ValueError: it began with other batches, or the next one would not begin an optimiser step.
        """
        if self.step == 0:
            return
        same = self.batches == len(batch_sizes) and self.images == sum(batch_sizes[: self.step])
        if not same or not 0 < self.step < self.batches or self.step % iter_size != 0:
            raise ValueError(
                f"it was written within an epoch, after {self.step} of {self.batches} batches, and the epoch cannot be "
                "gone on with in other ones: use the --batch-size and --iter-size it was made with (with "
                "--no-sync-bn as many processes, too), or a checkpoint from the end of an epoch"
            )


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
    begun: Underway = Underway(),
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
