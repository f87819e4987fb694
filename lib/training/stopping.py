"""When a run saves within an epoch and when it stops: the same decision on all ranks, at the same step."""

import re
import time
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import distributed

from lib.distributed.world import World
from lib.errors import not_none
from lib.runtime.stop_signals import StopSignals
from lib.training.epoch import EpochProgress

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}  # seconds
_SAVE, _STOP = 1, 2  # requests; a request to stop is _STOP + the number of the signal


class SaveEvery(NamedTuple):
    """How often a run saves within an epoch: the batches, or the seconds, between saves; None: never."""

    steps: Optional[int] = None
    seconds: Optional[float] = None

    @classmethod
    def parse(cls, text: Optional[str]) -> "SaveEvery":
        """The option --save-every: `500`, `10min`, or None."""
        if text is None:
            return cls()
        number, unit = not_none(re.fullmatch(r"([0-9]+) ?([a-z]*)", text)).groups()
        if unit in _UNITS:
            return cls(seconds=int(number) * _UNITS[unit])
        return cls(steps=int(number))


class StopAndSavePolicy:
    """Saves and stops a run between optimiser steps. All ranks must call it at the same steps.

    A request on any rank takes effect on all ranks one step later.

    Args:
        save_every: how often to save within an epoch.
        stop: the signals that were received.
        world: the processes.
        save: called as `save(progress, signal number or None)` when it is time; it raises where a signal asks to stop.
        clock: in seconds; the first process's clock decides.
    """

    def __init__(
        self,
        save_every: SaveEvery,
        stop: StopSignals,
        world: World,
        save: Callable[[EpochProgress, Optional[int]], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every, self._stop, self._save, self._clock = save_every, stop, save, clock
        self._is_first = world.is_first
        self._consensus = Consensus(world)
        self.saved_at(0)

    def saved_at(self, step: int) -> None:
        """Register that the run was saved after `step` batches of an epoch."""
        self._step, self._time, self._asked = step, self._clock(), False

    def between_steps(self, step: int, progress: Callable[[], EpochProgress]) -> None:
        """Save, or save and stop, if it is time after `step` batches of an epoch; `progress()` waits for the device."""
        request = self._consensus.at_step(self._stop_request() or self._save_request())
        is_due = self._every.steps is not None and step - self._step >= self._every.steps
        if is_due or request != 0:
            self._save(progress(), _signal(request))
            self.saved_at(step)

    def after_epoch(self) -> Optional[int]:
        """The number of the signal that asks to stop after an epoch and its evaluation, or None."""
        return _signal(self._consensus.now(self._stop_request()))

    def _stop_request(self) -> int:
        return 0 if self._stop.requested is None else _STOP + self._stop.requested

    def _save_request(self) -> int:
        limit = self._every.seconds
        is_late = self._is_first and limit is not None and self._clock() - self._time >= limit
        if not is_late or self._asked:  # the request of one step is followed at the next, when it is still late
            return 0
        self._asked = True
        return _SAVE


def _signal(request: int) -> Optional[int]:
    return request - _STOP if request > _STOP else None


class Consensus:
    """The largest of the ranks' requests, the same number on all ranks.

    Requests are exchanged between CPUs during the computation, and a request of one step is known at the next: no rank
    waits for its device, and hardly for another rank.

    Args:
        world: the processes. All must make the same calls in the same order.
    """

    def __init__(self, world: World):
        self._is_alone, self._group = world.size == 1, world.cpu_group
        self._request: Optional[torch.Tensor] = None
        self._exchange: Any = None

    def at_step(self, request: int) -> int:
        """The largest request of the call before this one, 0 at first; with one process that of this call."""
        if self._is_alone:
            return request
        agreed = self._received()
        self._send(request)
        return agreed

    def now(self, request: int) -> int:
        """The largest request that no call has returned yet, this one included. Waits for the other ranks."""
        if self._is_alone:
            return request
        earlier = self._received()
        self._send(request)
        return max(earlier, self._received())

    def _send(self, request: int) -> None:
        self._request = torch.tensor([request])
        self._exchange = distributed.all_reduce(
            self._request, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )

    def _received(self) -> int:
        if self._exchange is None:
            return 0
        self._exchange.wait()
        self._exchange = None
        return int(not_none(self._request))
