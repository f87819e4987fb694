"""When a run saves within an epoch, and when it stops: the same decision in all its processes."""

import re
import time
from typing import Callable, NamedTuple, Optional

from lib.distributed.consensus import Consensus
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


class Pauses:
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
