"""Reading many image files once, before a run: in several processes, with a word now and then on how far it is."""

import logging
import signal
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Callable, TypeVar

from lib.errors import RunError
from lib.session.journal import LOGGER
from lib.session.progress import LINE_EVERY, duration

log = logging.getLogger(LOGGER)

Item, Result = TypeVar("Item"), TypeVar("Result")

_FEW = 64  # images that are not worth starting processes for
_BLOCK = 4096  # images handed to the processes at a time: what is lost when the work is stopped


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers_num: int, option: str
) -> Generator[Result, None, None]:
    """`work` of each item, in their order.

    Args:
        work: a function that other processes can be told to call.
        workers_num: how many processes; with 0, or where there is little to do, it is done in this one.
        option: what asked for it, for the message.

    Raises:
        RunError: a process died.
        Exception: what `work` raises.
    """
    if workers_num == 0 or len(items) <= _FEW:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(workers_num, initializer=_ignore_interrupt)
    try:
        for start in range(0, len(items), _BLOCK):
            yield from pool.map(work, items[start : start + _BLOCK], chunksize=16)
    except BrokenProcessPool as error:
        raise RunError(
            f"{option}: a process that reads images was killed. If memory ran out, lower --workers-num; "
            "what was done is remembered"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    # Ctrl-C reaches all processes of a terminal; these end with their parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ReadingProgress:
    """A line now and then. As warnings: the log of the run is opened later, and until then no others are seen.

    Args:
        images: how many there are to read.
        task: what is done, e.g. `--skip-bad-images: checked`.
        kind: of the images, e.g. `training`.
    """

    def __init__(self, images: int, task: str, kind: str):
        self._images, self._task, self._kind, self._done = images, task, kind, 0
        self._started = self._last = time.monotonic()

    def advance(self) -> None:
        """One more image was read."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        left = (now - self._started) / self._done * (self._images - self._done)
        log.warning(
            "%s %s of %s %s images, %s left; this is done once",
            self._task,
            f"{self._done:,}",
            f"{self._images:,}",
            self._kind,
            duration(left),
        )
