"""Where what was found out about image files is kept, and how it is written there."""

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
from lib.runtime.atomic import replace_file

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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content, flush=False)
    except OSError:
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


def release() -> str:
    """What decodes: what an older or newer one has found out about files is not taken."""
    return f"{PIL.__version__}/{decoder()}"


NOT_THERE = 0
"""The key of a file that has no size and time."""


def file_keys(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, a checksum for each file: its path below the folder of them all, its size, its number on the disk,
    when its content and when anything about it changed, and what decodes it (`release`).

    Programs can set the time of the content back to that of a file that was there before; nothing sets back the time
    of any change, but for disks that do not keep it, where another file has another number.
    """
    root, decoded_by = len(os.path.commonpath({os.path.dirname(path) for path in paths})), release()
    return np.fromiter((_key(path, path[root:], decoded_by) for path in paths), dtype=np.uint64, count=len(paths))


def _key(path: str, name: str, decoded_by: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return NOT_THERE
    state = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    text = "/".join(map(str, (decoded_by, *state))).encode() + os.fsencode(name)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
