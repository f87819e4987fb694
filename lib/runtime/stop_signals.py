"""Ctrl-C and SIGTERM: the first requests a stop after the present step, the second ends the process at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Callable, Optional  # collections.abc.Callable in Optional fails in Python 3.9.0 and 3.9.1

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
BATCH_TIMEOUT = 10.0
"""Seconds that a run with a requested stop waits for a batch of images."""

_FORWARDED = 3.0  # seconds within which a launcher forwards the signal that the terminal has sent to all


class StopSignals:
    """A context in which the first SIGINT, SIGTERM or SIGHUP only sets `requested`.

    A second one ends the process by the signal's default action, once PyTorch's running operation has returned to
    Python; equal signals during one operation count once. A signal ignored before, as under nohup, stays ignored.
    Outside the main thread, where Python allows no handlers, the context does nothing.

    Args:
        launched: whether a launcher forwards signals. A process then gets the terminal's signal twice; a second one
            within three seconds does not count.
        quiet: write nothing to standard error, since another process of the run does.
        waiting_since: returns the time.monotonic() since which the run waits for a batch, or None.
        batch_timeout: the error that is raised where a stop is requested and no batch arrives.

    Attributes:
        requested: the signal, or None.
    """

    def __init__(
        self,
        launched: bool = False,
        quiet: bool = False,
        waiting_since: Callable[[], Optional[float]] = lambda: None,
        batch_timeout: Optional[Callable[[signal.Signals], BaseException]] = None,
    ):
        self.requested: Optional[signal.Signals] = None
        self._launched, self._quiet = launched, quiet
        self._received = 0.0
        self._error: Optional[Callable[[signal.Signals], BaseException]] = None
        self._waiting_since, self._batch_timeout = waiting_since, batch_timeout
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: Optional[type], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def raise_at_once(self, error: Callable[[signal.Signals], BaseException]) -> None:
        """Raise this error at the next signal, or now if there was one: there is nothing left to save."""
        self._error = error
        if self.requested is not None:
            raise error(self.requested)

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if self.requested is not None:
            if not self._launched or time.monotonic() - self._received > _FORWARDED:
                _end_by(number)
            return
        self.requested, self._received = signal.Signals(number), time.monotonic()
        if self._error is not None:
            raise self._error(self.requested)
        if self._batch_timeout is not None:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._check_wait)
            signal.setitimer(signal.ITIMER_REAL, 1, 1)
        if not self._quiet:
            # print and logging may be interrupted in the middle of a line; the terminal may be closed
            with contextlib.suppress(OSError, ValueError):
                line = f"\n{self.requested.name}: stopping after this step and saving; a second signal stops at once\n"
                os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, line.encode())

    def _check_wait(self, number: int, frame: Optional[FrameType]) -> None:
        """Runs once a second after the first signal."""
        assert self._batch_timeout is not None  # the timer starts when both are known
        assert self.requested is not None
        since = self._waiting_since()
        if since is not None and time.monotonic() - max(since, self._received) >= BATCH_TIMEOUT:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise self._batch_timeout(self.requested)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
