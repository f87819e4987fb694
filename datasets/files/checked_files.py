"""Which image files are known to be good."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.files import image_cache


class CheckedFiles:
    """Remembers of N image files which could be decoded.

    A file is known by its path below the folder of them all, its size, its number on the disk and its times of change,
    so that a file that was replaced is a new one; and for the release of Pillow it was decoded by. Bad files are not
    remembered: they are few, and one that could not be read for want of permission becomes good without changing.

    The record lies in the cache beside the folder of the images, or, where nothing can be written there, in
    and-discovery in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache). It is an array of checksums: a damaged
    or foreign one is passed over.

    Args:
        paths: of the files; at least one.
    """

    def __init__(self, paths: Sequence[str]):
        folder = image_cache.common_folder(paths)
        self._files = image_cache.places(folder, "checked", "npy")
        self._keys = image_cache.file_keys(paths)
        self._known = np.unique(np.concatenate([_read(file) for file in self._files]))

    def unknown(self) -> list[int]:
        """The rows of the files that are not known to be good."""
        return np.flatnonzero(~np.isin(self._keys, self._known) | (self._keys == image_cache.NOT_THERE)).tolist()

    def remember(self, rows: Sequence[int]) -> None:
        """The files of these rows are good. Where nothing can be written, they will be unknown again next time.

        What other processes have written in the meantime is kept.
        """
        if not rows:
            return
        known = np.union1d(self._known, self._keys[list(rows)])
        any(_add(file, known) for file in self._files)  # the first place that takes it


def _add(file: Path, known: np.ndarray) -> bool:
    """Put keys beside those that are in a file by now. Returns whether it could be written."""
    with image_cache.one_at_a_time(file):
        every = np.union1d(known, _read(file))

        def content(opened: BinaryIO) -> None:
            np.save(opened, every, allow_pickle=False)

        return image_cache.write(file, content)


def _read(file: Path) -> np.ndarray:
    """The keys in a file, none if it is not there or not ours."""
    try:
        keys = np.load(file, allow_pickle=False)
    except Exception:  # numpy and zipfile have many exceptions for bytes they cannot take
        keys = None
    usable = isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1
    return keys if usable else np.zeros(0, dtype=np.uint64)
