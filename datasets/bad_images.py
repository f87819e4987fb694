"""`--skip-bad-images`: every file is decoded once, before anything else, and those that cannot be are left out."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Optional, Union

import numpy as np

from datasets.checked_files import CheckedFiles
from datasets.image_file import read_rgb
from datasets.image_set import ImageSet
from datasets.reading import ReadingProgress, in_processes
from datasets.split import Split
from lib.errors import UserError, one_line
from lib.session.journal import LOGGER

log = logging.getLogger(LOGGER)

_LISTED = 10  # bad images that the log names


def without_bad_images(split: Split, workers_num: int, report: bool = True) -> tuple[Split, tuple[str, ...]]:
    """The data set without the files that cannot be read as images, and the paths of those.

    Which files are good is remembered (`CheckedFiles`), so that only new and changed ones are opened another time,
    and the bad ones. Images in memory have no files and all stay.

    Args:
        workers_num: processes that check; with 0 it is done in this one.
        report: whether to log what was left out, and how far the check is.

    Raises:
        UserError: no training image, or no test image, is left.
        RunError: a process that checks images died.
    """
    train, bad = readable(split.train, "training", workers_num, report)
    if split.test is None:
        return replace(split, train=train), bad
    test, bad_test = readable(split.test, "test", workers_num, report)
    return replace(split, train=train, test=test), bad + bad_test


def readable(images: ImageSet, kind: str, workers_num: int, report: bool) -> tuple[ImageSet, tuple[str, ...]]:
    """The same for one set of images; `kind` names them in messages.

    Raises:
        UserError: no image is left.
        RunError: a process that checks images died.
    """
    if images.pixels is not None:
        return images, ()
    checked = CheckedFiles(images.source)
    unknown = checked.unknown()  # rows
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
    if not reasons:
        return images, ()
    if len(reasons) == len(images):
        raise UserError(f"--skip-bad-images: no {kind} image can be read; the first: {reasons[0]}")
    if report:
        _list(tuple(reasons.values()), len(images), kind)
    kept = np.delete(np.arange(len(images)), list(reasons))
    return images.subset(kept), tuple(images.source[row] for row in reasons)


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
