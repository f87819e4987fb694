"""Whether a run has become much slower than it was."""

import time
from typing import Callable, Optional

WINDOW = 10.0
"""Seconds of training that a rate is measured over."""
FALL = 3


class RateWatch:
    """Compares the images per second of each window with those of the fastest so far, and answers once.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since = clock, clock()
        self._images, self._seconds, self._fastest, self._answered = 0, 0.0, 0.0, False

    def resume(self) -> None:
        """Training goes on after something else: what that took does not count."""
        self._since = self._clock()

    def see(self, images: int) -> Optional[tuple[float, float]]:
        """So many more images were learnt from.

        Returns:
            the rate of this window and the fastest, the first time that it is below a third of it; else None.
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
