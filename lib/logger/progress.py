"""How far the run is: one bar on a terminal, a line now and then in a file, a pipe, or where tqdm is not installed."""

import logging
import shutil
import sys
import time
from typing import Any, Optional

from lib.logger.console import LOGGER, is_terminal

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # without it there are lines in place of bars
    tqdm = None

LINE_EVERY = 60.0
"""Seconds between progress lines where there is no bar."""


class Progress:
    """Counts the images of all rounds.

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
        """What begins now, e.g. "round 1/4 epoch 3/200"."""
        self._label = text
        self._epoch_started, self._done_before_epoch = time.monotonic(), self._done
        self._show("")

    def note(self, text: str) -> None:
        """What takes a while without an image being learnt, e.g. "evaluating"."""
        self._show(text)

    def advance(self, images: int, loss: Optional[float] = None) -> None:
        """So many more images were learnt from; the loss is given where it was looked at."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
            self._show(f"{self._rate()}{_loss_if_wide(loss)}")
        elif not self._quiet and loss is not None and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self._log.info("%s  loss %.3f  %s", self._label, loss, self._rate())

    def _rate(self) -> str:
        """The speed of this epoch's training, and the time left for all rounds by all that has passed so far,
        evaluations included."""
        now = time.monotonic()
        speed = (self._done - self._done_before_epoch) / max(now - self._epoch_started, 1e-9)
        rate = (self._done - self._done_before) / max(now - self._started, 1e-9)
        return f"{speed:.0f} images/s  {duration((self._total - self._done) / rate)} left"

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.bar_format = _BAR.format(_without_braces(self._label), _without_braces(text))
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


_BAR = "{}  {{percentage:3.0f}}%|{{bar}}| {}"
_WIDE = 80  # columns


def _loss_if_wide(loss: Optional[float]) -> str:
    wide = shutil.get_terminal_size().columns >= _WIDE
    return f"  loss {loss:.3f}" if wide and loss is not None else ""


def _without_braces(text: str) -> str:
    """tqdm takes braces for its own."""
    return text.replace("{", "(").replace("}", ")")


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
