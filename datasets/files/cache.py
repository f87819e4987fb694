"""The cache of decoded and checked image files: paths, writing, locking, and keys."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable

import numpy as np
import PIL

from datasets.files.decode import decoder
from lib.runtime.atomic import lock_within, replace_file

CACHE = ".and-cache"
"""Name of the hidden folder beside the folder of the images."""
PATIENCE = 10
"""Seconds to wait for another process that changes a file, which takes it milliseconds."""


def common_folder(paths: Iterable[str]) -> Path:
    """The deepest folder that holds all the files; `paths` must not be empty."""
    return Path(os.path.abspath(os.path.commonpath({os.path.dirname(path) for path in paths})))


def write(file: Path, content: Callable[[BinaryIO], object]) -> bool:
    """Write a file atomically; its folder is made if it is missing.

    Args:
        content: writes the content into the opened file.

    Returns:
        Whether it could be written: a read-only or full disk is not an error.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content, flush=False)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Locks a file against other processes that change it, where its folder can be locked.

    Some network disks have no locks, and the holder may have been suspended for longer than `PATIENCE`: of two
    simultaneous writes the last one stays.
    """
    with contextlib.ExitStack() as at_end:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(file.parent, os.O_RDONLY)
            at_end.callback(os.close, folder)  # which releases the lock
            lock_within(PATIENCE, fcntl.flock, folder)
        yield


def cache_files(folder: Path, name: str, suffix: str) -> list[Path]:
    """The cache files of a folder of images, the preferred one first: beside the folder, and in and-discovery in the
    user's cache folder, if there is one."""
    beside = folder.parent / CACHE / f"{name}-{folder.name}.{suffix}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        return [beside]
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    return [beside, Path(cache, "and-discovery", f"{name}-{digest}.{suffix}")]


def decoder_versions() -> str:
    """The versions of the decoders, part of every key: results of other versions are not used."""
    return f"{PIL.__version__}/{decoder()}"


NOT_THERE = 0
"""The key of a file whose size and times cannot be read."""


def file_keys(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, checksums of the files: of path below the common folder, size, inode, times, and `decoder_versions`.

    The times are those of modification and of change. The time of change and the inode number are included because
    programs can restore the time of modification of an earlier file.
    """
    root, decoded_by = len(os.path.commonpath({os.path.dirname(path) for path in paths})), decoder_versions()
    return np.fromiter((_key(path, path[root:], decoded_by) for path in paths), dtype=np.uint64, count=len(paths))


def _key(path: str, name: str, decoded_by: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return NOT_THERE
    state = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    text = "/".join(map(str, (decoded_by, *state))).encode() + os.fsencode(name)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
