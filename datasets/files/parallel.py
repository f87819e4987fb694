"""Reading many image files once, before a run: in several processes, with a word now and then on how far it is."""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Callable, TypeVar, Union

import torch
from torch.utils.data import DataLoader

from datasets.loaders.worker_processes import affordable, context, ignore_signals_to_all
from datasets.loaders.workers import loaded
from lib.errors import RunError, UserError
from lib.logger.console import LOGGER
from lib.logger.progress import LINE_EVERY, duration

log = logging.getLogger(LOGGER)

Item, Result = TypeVar("Item"), TypeVar("Result")

_FEW = 64  # images that are not worth starting processes for
_BLOCK = 16  # images handed to a process at a time


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers_num: int, option: str
) -> Generator[Result, None, None]:
    """`work` of each item, in their order.

    Args:
        work: a function that other processes can be told to call.
        workers_num: how many processes; with 0, where there is little to do, or none can be started, it is done in this
            one.
        option: what asked for it, for the message.

    Raises:
        RunError: a process died.
        Exception: what `work` raises.
    """
    workers = affordable(workers_num) if len(items) > _FEW else 0
    if workers == 0:
        yield from map(work, items)
        return
    loader = DataLoader(
        _Done(work, items),
        batch_size=_BLOCK,
        num_workers=workers,
        multiprocessing_context=context(),
        collate_fn=list,
        worker_init_fn=ignore_signals_to_all,
        generator=torch.Generator(),  # without one it would draw from the default generator
    )
    with closing(loaded(loader)) as blocks:  # the processes go at once, not when a traceback does
        for block in blocks:
            if isinstance(block, RunError):
                raise RunError(
                    f"{option}: a process that reads images was killed. If memory ran out, lower --workers-num; "
                    "what was done is remembered"
                )
            for result in block:
                if isinstance(result, UserError):
                    raise result
                yield result


class _Done:
    """The results of the work by the rows of its items; a UserError as a value: torch would bury one that is raised."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]):
        self._work, self._items = work, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> Union[Result, UserError]:
        try:
            return self._work(self._items[row])
        except UserError as error:
            return type(error)(str(error))


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
