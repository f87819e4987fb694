"""The progress of a run: a bar on a terminal, elsewhere a log line every minute; and a warning if it slows down."""

import logging
import shutil
import sys
import time
from typing import Any, Callable, Optional

from lib.logger.console import LOGGER, is_terminal

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # log lines replace the bar
    tqdm = None

LINE_EVERY = 60.0
"""Seconds between progress lines where there is no bar."""
WINDOW = 10.0
"""Seconds of training that a rate is measured over."""
FALL = 3
"""A rate below one third of the fastest is reported."""


class Progress:
    """Shows how many images of all rounds the network has been trained on.

    Args:
        images: in the whole run.
        done: of these, before this process started (a resumed run).
        quiet: show nothing (`--brief`).
    """

    def __init__(self, images: int, done: int, quiet: bool):
        self._log = logging.getLogger(LOGGER)
        self._total, self._done, self._quiet = images, done, quiet
        self._started, self._done_before = time.monotonic(), done
        self._epoch_started, self._done_before_epoch = self._started, done
        self._last_line = time.monotonic()
        self._label = ""
        self._bar: Any = None
        if tqdm is not None and is_terminal(sys.stderr) and not quiet:
            self._bar = tqdm(
                total=images, initial=done, dynamic_ncols=True, leave=False, bar_format=_BAR.format("", "")
            )

    def label(self, text: str) -> None:
        """Show which epoch begins, e.g. "round 1/4 epoch 3/200"."""
        self._label = text
        self._epoch_started, self._done_before_epoch = time.monotonic(), self._done
        self._show("")

    def note(self, text: str) -> None:
        """Show what the run does between two epochs, e.g. "evaluating"."""
        self._show(text)

    def advance(self, images: int, loss: Optional[float] = None) -> None:
        """Count images that were trained on; `loss` is given now and then, since reading it waits for the device."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
            self._show(f"{self._rate()}{_loss_if_wide(loss)}")
        elif not self._quiet and loss is not None and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self._log.info("%s  loss %.3f  %s", self._label, loss, self._rate())

    def _rate(self) -> str:
        """Images per second of this epoch, and the time left for all rounds, evaluations included, at the mean rate."""
        now = time.monotonic()
        speed = (self._done - self._done_before_epoch) / max(now - self._epoch_started, 1e-9)
        rate = (self._done - self._done_before) / max(now - self._started, 1e-9)
        return f"{speed:.0f} images/s  {duration((self._total - self._done) / rate)} left"

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.bar_format = _BAR.format(self._label, text)
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


_BAR = "{}  {{percentage:3.0f}}%|{{bar}}| {}"
_WIDE = 80  # columns


def _loss_if_wide(loss: Optional[float]) -> str:
    wide = shutil.get_terminal_size().columns >= _WIDE
    return f"  loss {loss:.3f}" if wide and loss is not None else ""


def duration(seconds: float) -> str:
    """A duration in words: `42 s`, `7 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class RateWatch:
    """Compares the images per second of each window with the fastest so far; it warns once.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since = clock, clock()
        self._images, self._seconds, self._fastest, self._answered = 0, 0.0, 0.0, False

    def resume(self) -> None:
        """Exclude the time since the last step, in which the run did not train."""
        self._since = self._clock()

    def see(self, images: int) -> Optional[tuple[float, float]]:
        """Count images that were trained on.

        Returns:
            the rate of this window and the fastest rate, when first it is below a third of the fastest; else None.
        """
        now = self._clock()
        self._images += images
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._seconds < WINDOW:
            return None
        rate, fastest = self._images / self._seconds, self._fastest
        self._images, self._seconds, self._fastest = 0, 0.0, max(rate, fastest)
        if self._answered or rate * FALL >= fastest:
            return None
        self._answered = True
        return rate, fastest
