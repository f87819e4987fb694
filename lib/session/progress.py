"""How far the run is: one bar on a terminal, a line now and then in a file or a pipe."""

import logging
import sys
import time
from typing import Optional

from tqdm import tqdm

from lib.session.journal import LOGGER

LINE_EVERY = 60.0
"""Seconds between progress lines where there is no terminal."""


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
        self._last_line = time.monotonic()
        self._label = ""
        self._bar: Optional[tqdm] = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True, leave=False)

    def label(self, text: str) -> None:
        """Where the run is, e.g. "round 1/4 epoch 3/200"."""
        self._label = text
        if self._bar is not None:
            self._bar.set_description_str(text)

    def advance(self, images: int, loss: Optional[float] = None) -> None:
        self._done += images
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update(images)
        elif not self._quiet and loss is not None and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self._log.info("%s  loss %.3f  %s", self._label, loss, self._rate())

    def _rate(self) -> str:
        rate = (self._done - self._done_before) / max(time.monotonic() - self._started, 1e-9)
        left = (self._total - self._done) / rate
        return f"{rate:.0f} images/s  {duration(left)} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


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
