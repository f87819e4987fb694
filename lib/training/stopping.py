"""When a run saves within an epoch, and when it stops: the same decision in all its processes."""

import re
import time
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import distributed

from lib.distributed.world import World
from lib.runtime.stop_signals import StopSignals

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}  # seconds
_SAVE, _STOP = 1, 2  # wishes; to stop is _STOP + the number of the signal


class SaveEvery(NamedTuple):
    """How often to save within an epoch: after so many batches, or after so many seconds; None: not."""

    steps: Optional[int] = None
    seconds: Optional[float] = None

    @classmethod
    def parse(cls, text: Optional[str]) -> "SaveEvery":
        """The option: `500`, `10min`, or None."""
        if text is None:
            return cls()
        number, unit = re.fullmatch(r"([0-9]+) ?([a-z]*)", text).groups()
        if unit in _UNITS:
            return cls(seconds=int(number) * _UNITS[unit])
        return cls(steps=int(number))


class Decision(NamedTuple):
    """Whether to save now, and the signal that asks to stop, if one does."""

    save: bool
    stop: Optional[int]


class Consensus:
    """The largest of what the processes wish for, the same number in all of them.

    Wishes travel between CPUs beside the computation, and what was wished for at one step is known at the next: no
    process waits for its device, and hardly for another process.

    Args:
        world: the processes. All must make the same calls in the same order.
    """

    def __init__(self, world: World):
        self._several, self._line = world.size > 1, world.cpu_group
        self._wish: Optional[torch.Tensor] = None
        self._exchange: Any = None

    def at_step(self, wish: int) -> int:
        """The largest wish of the call before this one, 0 at first; with one process that of this call."""
        if not self._several:
            return wish
        agreed = self._arrived()
        self._begin(wish)
        return agreed

    def now(self, wish: int) -> int:
        """The largest wish that has not been heard of yet, this one included. Waits for the others."""
        if not self._several:
            return wish
        earlier = self._arrived()
        self._begin(wish)
        return max(earlier, self._arrived())

    def _begin(self, wish: int) -> None:
        self._wish = torch.tensor([wish])
        self._exchange = distributed.all_reduce(self._wish, distributed.ReduceOp.MAX, group=self._line, async_op=True)

    def _arrived(self) -> int:
        if self._exchange is None:
            return 0
        self._exchange.wait()
        self._exchange = None
        return int(self._wish)


class StopAndSavePolicy:
    """Asked between optimiser steps. All processes must ask at the same ones.

    Args:
        save_every: how often to save within an epoch.
        stop: what has been wished for by signals.
        world: the processes. What one of them wishes for all do, one step later.
        clock: seconds from anywhere. That of the first process counts.
    """

    def __init__(
        self, save_every: SaveEvery, stop: StopSignals, world: World, clock: Callable[[], float] = time.monotonic
    ):
        self._every, self._stop, self._first, self._clock = save_every, stop, world.is_first, clock
        self._consensus = Consensus(world)
        self.saved(0)

    def saved(self, step: int) -> None:
        """The run has just been saved, at this batch of an epoch."""
        self._step, self._time = step, self._clock()

    def at_step(self, step: int) -> Decision:
        """After `step` batches of an epoch."""
        late = self._first and self._every.seconds is not None and self._clock() - self._time >= self._every.seconds
        wish = self._consensus.at_step(self._wish_to_stop() or (_SAVE if late else 0))
        due = self._every.steps is not None and step - self._step >= self._every.steps
        stop = _signal(wish)
        return Decision(due or wish == _SAVE or stop is not None, stop)

    def after_epoch(self) -> Optional[int]:
        """After an epoch and what follows it: the signal that asks to stop, if one does."""
        return _signal(self._consensus.now(self._wish_to_stop()))

    def _wish_to_stop(self) -> int:
        return 0 if self._stop.wanted is None else _STOP + self._stop.wanted


def _signal(wish: int) -> Optional[int]:
    return wish - _STOP if wish > _STOP else None
