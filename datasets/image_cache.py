"""Where what was found out about image files is kept, and how it is written there."""

import contextlib
import fcntl
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable

import numpy as np
import PIL

CACHE = ".and-cache"
"""Name of the hidden folder beside the folder of the images."""


def common_folder(paths: Iterable[str]) -> Path:
    """The deepest folder that holds all the files; `paths` must not be empty."""
    return Path(os.path.abspath(os.path.commonpath({os.path.dirname(path) for path in paths})))


def write(file: Path, content: Callable[[BinaryIO], None]) -> bool:
    """Write a file in one piece, or not at all; its folder is made if need be.

    Args:
        content: writes what belongs into the file that it is given.

    Returns:
        Whether it could be written: a read-only or full disk is no error.
    """
    # the machine is part of the name: others may write the same file on a shared disk, under the same process id
    temporary = file.with_name(f"{file.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as opened:
            content(opened)
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):  # the folder itself may not be there
            temporary.unlink()
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Holds up other processes that want to change the same file, where its folder can be locked.

    Some network disks cannot: of two that write there at once, the last one's version stays.
    """
    with contextlib.ExitStack() as at_end:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(file.parent, os.O_RDONLY)
            at_end.callback(os.close, folder)  # and so let others go on
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def places(folder: Path, name: str, suffix: str) -> list[Path]:
    """Where something about the images of a folder may be kept, the first choice first: beside the folder, or in
    and-discovery in the user's cache folder, if the user has one."""
    beside = folder.parent / CACHE / f"{name}-{folder.name}.{suffix}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        return [beside]
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    return [beside, Path(cache, "and-discovery", f"{name}-{digest}.{suffix}")]


NOT_THERE = 0
"""The key of a file that has no size and time."""


def file_keys(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, a checksum for each file: its path below the folder of them all, its size and its time of change,
    and the release of Pillow that decodes it."""
    root = len(os.path.commonpath({os.path.dirname(path) for path in paths}))
    return np.fromiter((_key(path, path[root:]) for path in paths), dtype=np.uint64, count=len(paths))


def _key(path: str, name: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return NOT_THERE
    text = f"{PIL.__version__}/{status.st_size}/{status.st_mtime_ns}".encode() + os.fsencode(name)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
