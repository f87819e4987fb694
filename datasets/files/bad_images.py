"""`--skip-bad-images`: every file is decoded once, before anything else, and those that cannot be are left out."""

import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Callable, Optional, Union

import numpy as np
import torch
from torch import Tensor

from datasets.files.checked_files import CheckedFiles
from datasets.files.decode import read_rgb
from datasets.files.parallel import ReadingProgress, in_processes
from datasets.image_set import ImageSet
from datasets.split import Split
from lib.distributed.world import WHOLE, Share
from lib.errors import UserError, one_line
from lib.logger.console import LOGGER

log = logging.getLogger(LOGGER)

Gather = Callable[[Tensor], Tensor]
"""Bytes (R,) uint8 of this process, R perhaps 0, to those of all processes, in the order of their ranks."""

_LISTED = 10  # bad images that the log names


def without_bad_images(
    split: Split, workers_num: int, report: bool = True, share: Share = WHOLE, gather: Optional[Gather] = None
) -> tuple[Split, tuple[str, ...]]:
    """The data set without the files that cannot be read as images, and the paths of those.

    Which files are good is remembered (`CheckedFiles`), so that only new and changed ones are opened another time,
    and the bad ones. Images in memory have no files and all stay.

    Args:
        workers_num: processes that check; with 0 it is done in this one.
        report: whether to log what was left out, and how far the check is.
        share, gather: where several processes have the same images, which part this one checks, and how it hears of
            the others' bad ones. All leave out the same, though each opens the files of its own machine alone.

    Raises:
        UserError: no training image, or no test image, is left.
        RunError: a process that checks images died.
    """
    train, bad = readable(split.train, "training", workers_num, report, share, gather)
    if split.test is None:
        return replace(split, train=train), bad
    test, bad_test = readable(split.test, "test", workers_num, report, share, gather)
    return replace(split, train=train, test=test), bad + bad_test


def readable(
    images: ImageSet,
    kind: str,
    workers_num: int,
    report: bool,
    share: Share = WHOLE,
    gather: Optional[Gather] = None,
) -> tuple[ImageSet, tuple[str, ...]]:
    """The same for one set of images; `kind` names them in messages.

    Raises:
        UserError: no image is left.
        RunError: a process that checks images died.
    """
    if images.pixels is not None:
        return images, ()
    checked = CheckedFiles(images.source)
    own = share.span(len(images))
    unknown = [row for row in checked.unknown() if own.start <= row < own.stop]
    reasons: dict[int, str] = {}  # of the bad ones, by row
    good: list[int] = []
    progress = ReadingProgress(len(unknown), "--skip-bad-images: checked", kind) if report else None
    try:
        with closing(_verdicts(images.source, unknown, workers_num)) as verdicts:
            for row, reason in zip(unknown, verdicts):
                if reason is None:
                    good.append(row)
                else:
                    reasons[row] = reason
                if progress is not None:
                    progress.advance()
    finally:  # a check that was stopped goes on where it was
        checked.remember(good)
    if gather is not None:
        reasons = _of_all(reasons, gather)
    if not reasons:
        return images, ()
    if len(reasons) == len(images):
        raise UserError(f"--skip-bad-images: no {kind} image can be read; the first: {reasons[0]}")
    if report:
        _list(tuple(reasons.values()), len(images), kind)
    kept = np.delete(np.arange(len(images)), list(reasons))
    return images.subset(kept), tuple(images.source[row] for row in reasons)


def _of_all(reasons: dict[int, str], gather: Gather) -> dict[int, str]:
    """The bad images of all processes, by row."""
    lines = "".join(json.dumps([row, reason]) + "\n" for row, reason in reasons.items()).encode()
    gathered = gather(torch.tensor(list(lines), dtype=torch.uint8))
    return dict(json.loads(line) for line in bytes(gathered.tolist()).splitlines())


def _verdicts(paths: Sequence[str], rows: Sequence[int], workers_num: int) -> Generator[Optional[str], None, None]:
    """For each row why its file is bad, or None; in the order of `rows`."""
    return in_processes(_reason, _Chosen(paths, rows), workers_num, "--skip-bad-images")


class _Chosen(Sequence):
    """Some of many paths, taken out when they are asked for."""

    def __init__(self, paths: Sequence[str], rows: Sequence[int]):
        self._paths, self._rows = paths, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Union[int, slice]) -> Union[str, list[str]]:
        if isinstance(index, slice):
            return [self._paths[row] for row in self._rows[index]]
        return self._paths[self._rows[index]]


def _reason(path: str) -> Optional[str]:
    """Why a file is no image that can be decoded to its end, or None."""
    try:
        read_rgb(path)
    except UserError as error:
        return str(error)
    return None


def _list(reasons: Sequence[str], images: int, kind: str) -> None:
    log.warning(
        "--skip-bad-images: %s of %s %s images cannot be read and are left out:",
        f"{len(reasons):,}",
        f"{images:,}",
        kind,
    )
    for reason in reasons[:_LISTED]:
        log.warning("    %s", one_line(reason))
    if len(reasons) > _LISTED:
        log.warning("    and %s more", f"{len(reasons) - _LISTED:,}")
