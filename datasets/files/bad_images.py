"""`--skip-bad-images`: decode every file once before the run, and leave out those that cannot be decoded."""

import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Callable, Optional, Union, overload

import numpy as np
import torch
from torch import Tensor

from datasets.files import cache
from datasets.files.decode import read_rgb
from datasets.files.parallel import ReadingProgress, map_in_workers
from datasets.image_set import ImageSet, Split
from lib.distributed.world import WHOLE, Share
from lib.errors import UserError, one_line
from lib.logger.console import LOGGER

log = logging.getLogger(LOGGER)

Gather = Callable[[Tensor], Tensor]
"""All-gathers bytes: (R,) uint8 of this process, where R may be 0, to those of all processes, by rank."""

_LISTED = 10  # bad images that the log names


def without_bad_images(
    split: Split, workers_num: int, report: bool = True, share: Share = WHOLE, gather: Optional[Gather] = None
) -> tuple[Split, tuple[str, ...]]:
    """The data set without the files that cannot be read as images, and the paths of those.

    `CheckedFiles` records the good files, so that the next run opens only new, changed and bad ones. Images in memory
    all stay.

    Args:
        workers_num: DataLoader workers that check; with 0 this process does.
        report: whether to log the files left out and the progress.
        share, gather: where several processes have the same images, the part that this one checks, and the exchange of
            bad images between them. All leave out the same images; each opens files of its own machine only.

    Raises:
        UserError: no training image, or no test image, is left.
        RunError: a worker died.
    """
    train, bad = readable_images(split.train, "training", workers_num, report, share, gather)
    if split.test is None:
        return replace(split, train=train), bad
    test, bad_test = readable_images(split.test, "test", workers_num, report, share, gather)
    return replace(split, train=train, test=test), bad + bad_test


def readable_images(
    images: ImageSet,
    kind: str,
    workers_num: int,
    report: bool,
    share: Share = WHOLE,
    gather: Optional[Gather] = None,
) -> tuple[ImageSet, tuple[str, ...]]:
    """`without_bad_images` for one set of images; `kind` names them in messages.

    Raises:
        UserError: no image is left.
        RunError: a worker died.
    """
    if isinstance(images.source, np.ndarray):
        return images, ()
    checked = CheckedFiles(images.source)
    own = share.span(len(images))
    unknown = [row for row in checked.unknown() if own.start <= row < own.stop]
    reasons: dict[int, str] = {}  # of the bad ones, by row
    good: list[int] = []
    progress = ReadingProgress(len(unknown), "--skip-bad-images: checked", kind) if report else None
    try:
        with closing(_check(images.source, unknown, workers_num)) as results:
            for row, reason in zip(unknown, results):
                if reason is None:
                    good.append(row)
                else:
                    reasons[row] = reason
                if progress is not None:
                    progress.advance()
    finally:  # so that the next run resumes an interrupted check
        checked.add(good)
    if gather is not None:
        reasons = _gather_reasons(reasons, gather)
    if not reasons:
        return images, ()
    if len(reasons) == len(images):
        raise UserError(f"--skip-bad-images: no {kind} image can be read; the first: {reasons[0]}")
    if report:
        _list(tuple(reasons.values()), len(images), kind)
    kept = np.delete(np.arange(len(images)), list(reasons))
    return images.subset(kept), tuple(images.source[row] for row in reasons)


def _gather_reasons(reasons: dict[int, str], gather: Gather) -> dict[int, str]:
    """The reasons against the bad images of all processes, by row."""
    lines = "".join(json.dumps([row, reason]) + "\n" for row, reason in reasons.items()).encode()
    gathered = gather(torch.tensor(list(lines), dtype=torch.uint8))
    return dict(json.loads(line) for line in bytes(gathered.tolist()).splitlines())


def _check(paths: Sequence[str], rows: Sequence[int], workers_num: int) -> Generator[Optional[str], None, None]:
    """Yields the reason why a file is bad, or None, for each row in the order of `rows`."""
    return map_in_workers(_reason, _SelectedPaths(paths, rows), workers_num, "--skip-bad-images")


class _SelectedPaths(Sequence[str]):
    """A view of selected paths."""

    def __init__(self, paths: Sequence[str], rows: Sequence[int]):
        self._paths, self._rows = paths, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[str, list[str]]:
        if isinstance(index, slice):
            return [self._paths[row] for row in self._rows[index]]
        return self._paths[self._rows[index]]


def _reason(path: str) -> Optional[str]:
    """The reason why a file cannot be decoded to its end as an image, or None."""
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


class CheckedFiles:
    """A record on disk of the image files that could be decoded, by their keys (`cache.file_keys`).

    Bad files are not recorded: they are few, and a file without read permission becomes good without a new key.

    The record is an array of keys in the cache beside the folder of the images, or, where nothing can be written there,
    in and-discovery in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache). A damaged record is ignored.

    Args:
        paths: of the files; at least one.
    """

    def __init__(self, paths: Sequence[str]):
        folder = cache.common_folder(paths)
        self._files = cache.cache_files(folder, "checked", "npy")
        self._keys = cache.file_keys(paths)
        self._known = np.unique(np.concatenate([_read_keys(file) for file in self._files]))

    def unknown(self) -> list[int]:
        """The rows of the files that are not known to be good."""
        return np.flatnonzero(~np.isin(self._keys, self._known) | (self._keys == cache.NOT_THERE)).tolist()

    def add(self, rows: Sequence[int]) -> None:
        """Record the files of these rows as good, in addition to those that other processes recorded in the meantime.

        If nothing can be written, the next run checks them again.
        """
        if not rows:
            return
        known = np.union1d(self._known, self._keys[list(rows)])
        any(_add(file, known) for file in self._files)  # the first that can be written


def _add(file: Path, known: np.ndarray) -> bool:
    """Add keys to those in a file. Returns whether it could be written."""
    with cache.locked(file):
        every = np.union1d(known, _read_keys(file))

        def content(opened: BinaryIO) -> None:
            np.save(opened, every, allow_pickle=False)

        return cache.write(file, content)


def _read_keys(file: Path) -> np.ndarray:
    """The keys in a file; none if it is missing or damaged."""
    try:
        keys = np.load(file, allow_pickle=False)
    except Exception:  # numpy and zipfile have many exceptions for bytes they cannot take
        keys = None
    usable = isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1
    return keys if usable else np.zeros(0, dtype=np.uint64)
