"""Reads many image files once, before a run, by DataLoader workers, and logs the progress."""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Callable, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from datasets.loaders.worker_processes import allowed_workers, fork_context, ignore_signals
from datasets.loaders.workers import load_batches
from lib.errors import RunError, UserError
from lib.logger.console import LINE_EVERY, LOGGER, duration

log = logging.getLogger(LOGGER)

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 64  # images up to which no workers are started
_BLOCK = 16  # images handed to a process at a time


def map_in_workers(
    work: Callable[[Item], Result], items: Sequence[Item], workers_num: int, option: str
) -> Generator[Result, None, None]:
    """`work` of each item, in their order.

    Args:
        work: a function that can be pickled.
        workers_num: DataLoader workers; with 0, for few items, or where none can start, this process does the work.
        option: the option that asked for the work, for the message.

    Raises:
        RunError: a worker died.
        Exception: what `work` raises.
    """
    workers = allowed_workers(workers_num) if len(items) > _FEW else 0
    if workers == 0:
        yield from map(work, items)
        return
    loader: DataLoader = DataLoader(
        _Results(work, items),
        batch_size=_BLOCK,
        num_workers=workers,
        multiprocessing_context=fork_context(),
        collate_fn=list,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # without one it would draw from the default generator
    )
    with closing(load_batches(loader)) as blocks:  # the workers end now, not when a traceback is freed
        for block in blocks:
            if isinstance(block, RunError):
                raise RunError(
                    f"{option}: a DataLoader worker died. If memory ran out, lower --workers-num; "
                    "finished files are not read again"
                )
            for result in block:
                if isinstance(result, UserError):
                    raise result
                yield result


class _Results(Dataset):
    """The results of the work by item. A UserError is returned: torch would wrap a raised one in a traceback."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]):
        self._work, self._items = work, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> Any:
        try:
            return self._work(self._items[row])
        except UserError as error:
            return type(error)(str(error))


class ReadingProgress:
    """Logs progress at intervals, as warnings: the log of the run, which shows more levels, is opened later.

    Args:
        images: how many there are to read.
        task: what is done, e.g. `--skip-bad-images: checked`.
        kind: of the images, e.g. `training`.
    """

    def __init__(self, images: int, task: str, kind: str):
        self._images, self._task, self._kind, self._done = images, task, kind, 0
        self._started = self._last = time.monotonic()

    def advance(self) -> None:
        """Count one more image."""
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
