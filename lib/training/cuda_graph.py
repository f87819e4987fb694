"""Whole training steps as CUDA graphs: one launch instead of some hundred, which a small batch would wait for."""

import logging
from typing import Union

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lib.compat import HAS_SEEDS_IN_GRAPHS, capture
from lib.logger.console import LOGGER
from lib.training.step import FiniteWatch, Step

log = logging.getLogger(LOGGER)

EAGER_STEPS = 3
"""Steps of each kind that run as they are before one is captured: libraries choose their algorithms in these."""

_Kind = tuple


def can_be_captured(network: nn.Module, optimizer: Optimizer) -> bool:
    """Whether a replayed step is the next one, not the recorded one once more.

    Adam counts its steps; before PyTorch 1.12, and without `capturable`, it does so in Python. Dropout draws by a seed
    that is set before each step.
    """
    if not HAS_SEEDS_IN_GRAPHS and any(isinstance(layer, nn.Dropout) for layer in network.modules()):
        return False
    return isinstance(optimizer, SGD) or all(group.get("capturable", False) for group in optimizer.param_groups)


class CapturedStep:
    """A `Step` that is recorded once and replayed from then on, with the same results.

    A recording fits one batch size, one size of the sets and one learning rate; each kind of step gets a recording
    of its own once it has been seen often enough, and those of an old learning rate are dropped. Batches that share
    an optimiser step with others are not recorded. One process only.

    Args:
        step: what to record. Bank and network must live on the current CUDA device and stay where they are.
    """

    def __init__(self, step: Step):
        self._step = step
        self._rates: tuple[float, ...] = ()
        self._seen: dict[_Kind, int] = {}
        self._recordings: dict[_Kind, _Recording] = {}
        self._failed: set[_Kind] = set()
        self._side_stream = torch.cuda.Stream()

    @property
    def watch(self) -> FiniteWatch:
        """As `Step.watch`; it is part of what is recorded."""
        return self._step.watch

    def __call__(
        self, images: Tensor, members: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """As `Step.__call__`."""
        kind = (images.shape, members.shape)
        if kind in self._failed or not (share == 1.0 and first and last):
            return self._step(images, members, size, share, first, last)
        rates = tuple(group["lr"] for group in self._step.optimizer.param_groups)
        if rates != self._rates:
            self._rates = rates
            self._recordings.clear()
        if kind not in self._recordings:
            seen = self._seen.get(kind, 0)
            if seen < EAGER_STEPS:
                self._seen[kind] = seen + 1
                return self._aside(images, members)
            recording = self._record(images, members)
            if recording is None:
                self._failed.add(kind)
                return self._step(images, members, size)
            self._recordings[kind] = recording
        return self._recordings[kind].replay(images, members)

    def _aside(self, *batch: Tensor) -> Tensor:
        """An ordinary step on a stream of its own, as PyTorch asks for before a capture."""
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            loss = self._step(*batch, len(batch[0]))
        torch.cuda.current_stream().wait_stream(self._side_stream)
        return loss

    def _record(self, *batch: Tensor) -> Union["_Recording", None]:
        """Recording runs nothing, so a failure has changed nothing and the run goes on without."""
        try:
            return _Recording(self._step, batch)
        except RuntimeError as error:
            log.warning(
                "steps of %d images are not captured in a CUDA graph: %s", len(batch[0]), str(error).splitlines()[0]
            )
            self._step.optimizer.zero_grad(set_to_none=True)
            return None


class _Recording:
    """A graph with the memory it reads a batch from and leaves the loss in."""

    def __init__(self, step: Step, batch: tuple[Tensor, ...]):
        self._inputs = tuple(tensor.clone() for tensor in batch)
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph):
            self._loss = step(*self._inputs, len(batch[0]))

    def replay(self, *batch: Tensor) -> Tensor:
        for own, given in zip(self._inputs, batch):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()
