"""Training steps as CUDA graphs: one launch replaces several hundred, whose overhead dominates small batches."""

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
"""Eager steps of each kind before one is captured: in these, libraries choose their algorithms."""

_Kind = tuple


def can_be_captured(network: nn.Module, optimizer: Optimizer) -> bool:
    """Whether a replay computes the next step rather than the captured one again.

    Before PyTorch 1.12, or without `capturable`, Adam counts its steps in Python. Dropout draws from a seed that is set
    before each step.
    """
    if not HAS_SEEDS_IN_GRAPHS and any(isinstance(layer, nn.Dropout) for layer in network.modules()):
        return False
    return isinstance(optimizer, SGD) or all(group.get("capturable", False) for group in optimizer.param_groups)


class CapturedStep:
    """A `Step` that is captured once and replayed from then on, with the same results.

    A graph fits one batch size, one size of the sets and one learning rate. Each kind of step gets its graph after
    `EAGER_STEPS`; graphs of an old learning rate are dropped. Batches that share an optimiser step run eagerly. One
    process only.

    Args:
        step: what to capture. Bank and network must stay in their memory on the current CUDA device.
    """

    def __init__(self, step: Step):
        self._step = step
        self._rates: tuple[float, ...] = ()
        self._seen: dict[_Kind, int] = {}
        self._graphs: dict[_Kind, _Graph] = {}
        self._failed: set[_Kind] = set()
        self._side_stream = torch.cuda.Stream()

    @property
    def watch(self) -> FiniteWatch:
        """As `Step.watch`, which is captured too."""
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
            self._graphs.clear()
        if kind not in self._graphs:
            seen = self._seen.get(kind, 0)
            if seen < EAGER_STEPS:
                self._seen[kind] = seen + 1
                return self._on_side_stream(images, members)
            graph = self._capture(images, members)
            if graph is None:
                self._failed.add(kind)
                return self._step(images, members, size)
            self._graphs[kind] = graph
        return self._graphs[kind].replay(images, members)

    def _on_side_stream(self, images: Tensor, members: Tensor) -> Tensor:
        """An eager step on a side stream, which PyTorch requires before a capture."""
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            loss = self._step(images, members, len(images))
        torch.cuda.current_stream().wait_stream(self._side_stream)
        return loss

    def _capture(self, images: Tensor, members: Tensor) -> Union["_Graph", None]:
        """Capture a step. This runs nothing, so after a failure training continues eagerly."""
        try:
            return _Graph(self._step, images, members)
        except RuntimeError as error:
            log.warning(
                "steps of %d images are not captured in a CUDA graph: %s", len(images), str(error).splitlines()[0]
            )
            self._step.optimizer.zero_grad(set_to_none=True)
            return None


class _Graph:
    """A graph with the memory of its batch and its loss."""

    def __init__(self, step: Step, images: Tensor, members: Tensor):
        self._inputs = images.clone(), members.clone()
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph):
            self._loss = step(*self._inputs, len(images))

    def replay(self, *batch: Tensor) -> Tensor:
        for own, new in zip(self._inputs, batch):
            own.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()
