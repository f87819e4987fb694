"""Which image files are known to be good."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL

from datasets import image_cache
from datasets.image_cache import CACHE


class CheckedFiles:
    """Remembers of N image files which could be decoded.

    A file is known by its path below the folder of them all, its size and its time of change, so that a file that
    was replaced is a new one; and for the release of Pillow it was decoded by. Bad files are not remembered: they
    are few, and one that could not be read for want of permission becomes good without changing.

    The record lies in the cache beside the folder of the images, or, where nothing can be written there, in
    and-discovery in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache). It is an array of checksums: a damaged
    or foreign one is passed over.

    Args:
        paths: of the files; at least one.
    """

    def __init__(self, paths: Sequence[str]):
        folder = image_cache.common_folder(paths)
        self._files = [folder.parent / CACHE / f"checked-{folder.name}.npy", *_in_users_cache(folder)]
        self._keys = _keys(paths)
        self._known = np.unique(np.concatenate([_read(file) for file in self._files]))

    def unknown(self) -> list[int]:
        """The rows of the files that are not known to be good."""
        return np.flatnonzero(~np.isin(self._keys, self._known) | (self._keys == _NOT_THERE)).tolist()

    def remember(self, rows: Sequence[int]) -> None:
        """The files of these rows are good. Where nothing can be written, they will be unknown again next time."""
        if not rows:
            return
        known = np.union1d(self._known, self._keys[list(rows)])

        def content(file: BinaryIO) -> None:
            np.save(file, known, allow_pickle=False)

        any(image_cache.write(file, content) for file in self._files)  # the first place that takes it


_NOT_THERE = 0  # the key of a file that has no size and time


def _keys(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, a checksum for each file."""
    root = len(os.path.commonpath({os.path.dirname(path) for path in paths}))
    return np.fromiter((_key(path, path[root:]) for path in paths), dtype=np.uint64, count=len(paths))


def _key(path: str, name: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return _NOT_THERE
    text = f"{PIL.__version__}/{status.st_size}/{status.st_mtime_ns}".encode() + os.fsencode(name)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _in_users_cache(folder: Path) -> tuple[Path, ...]:
    """The file for the images in a folder, none if the user has no place of their own."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        return ()
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    return (Path(cache, "and-discovery", f"checked-{digest}.npy"),)


def _read(file: Path) -> np.ndarray:
    """The keys in a file, none if it is not there or not ours."""
    try:
        keys = np.load(file, allow_pickle=False)
    except Exception:  # numpy and zipfile have many exceptions for bytes they cannot take
        keys = None
    usable = isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1
    return keys if usable else np.zeros(0, dtype=np.uint64)
