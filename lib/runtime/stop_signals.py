"""Ctrl-C and SIGTERM: a wish to stop that the run grants at its next step; said twice, it stops at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Optional

_WANTED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 10.0
"""Seconds for which a run that was asked to stop waits for a batch of images."""

_SAME = 3.0  # seconds in which a launcher passes on what the terminal has sent to all


class StopSignals:
    """While it is entered, the first of these signals is remembered in `wanted` and does nothing else.

    The next one ends the process as if nobody listened, as soon as Python comes back from the operation of PyTorch's
    that runs; two signals of one kind during one operation are one. A signal that was ignored before, as nohup arranges
    it, stays ignored. Outside the main thread, where Python allows no handlers, everything stays as it was.

    Args:
        launched: whether a launcher passes signals on. From a terminal this process then gets one twice: what follows
            within three seconds does not count.
        quiet: say nothing on standard error; another process of the run does.
        waiting_since: tells since when, by time.monotonic(), a batch is waited for, or None.
        unheard: the error that ends a run whose batch does not come.
    """

    def __init__(
        self,
        launched: bool = False,
        quiet: bool = False,
        waiting_since: Callable[[], Optional[float]] = lambda: None,
        unheard: Optional[Callable[[signal.Signals], BaseException]] = None,
    ):
        self.wanted: Optional[signal.Signals] = None
        self._launched, self._quiet = launched, quiet
        self._heard = 0.0
        self._error: Optional[Callable[[signal.Signals], BaseException]] = None
        self._waiting_since, self._unheard = waiting_since, unheard
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _WANTED:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: Optional[type], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def at_once(self, error: Callable[[signal.Signals], BaseException]) -> None:
        """From here on nothing needs to be saved: the first signal raises this error, an earlier one does so now."""
        self._error = error
        if self.wanted is not None:
            raise error(self.wanted)

    def _hear(self, number: int, frame: Optional[FrameType]) -> None:
        if self.wanted is not None:
            if not self._launched or time.monotonic() - self._heard > _SAME:
                _end_by(number)
            return
        self.wanted, self._heard = signal.Signals(number), time.monotonic()
        if self._error is not None:
            raise self._error(self.wanted)
        if self._unheard is not None:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look_at_wait)
            signal.setitimer(signal.ITIMER_REAL, 1, 1)
        if not self._quiet:
            # not by print or logging, which may be in the middle of a line; the terminal may be gone
            with contextlib.suppress(OSError, ValueError):
                os.write(
                    sys.__stderr__.fileno() if sys.__stderr__ is not None else 2,
                    f"\n{self.wanted.name}: stopping after this step and saving; once more stops at once\n".encode(),
                )

    def _look_at_wait(self, number: int, frame: Optional[FrameType]) -> None:
        """Once a second after a signal."""
        since = self._waiting_since()
        if since is not None and time.monotonic() - max(since, self._heard) >= PATIENCE:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise self._unheard(self.wanted)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
