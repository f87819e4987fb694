"""Atomic replacement of files, in which a reader finds the old file or the new one, and locks on files."""

import contextlib
import errno
import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Callable

from lib.errors import RunError


def replace_file(path: Path, write: Callable[[BinaryIO], object], flush: bool = True) -> None:
    """Write a file beside `path`, flush it to the disk, and rename it to `path`.

    Args:
        write: writes the content into the file that it is given.
        flush: False for a file that may be lost in a power cut, such as a cache; it saves the wait for the disk.

    Raises:
        OSError: writing fails; what was at `path` is unchanged.
    """
    temporary = write_beside(path, write, flush)
    try:
        put_in_place(temporary, path, flush)
    except OSError:
        _remove(temporary)
        raise


def write_beside(path: Path, write: Callable[[BinaryIO], object], flush: bool = True) -> Path:
    """The first half of `replace_file`.

    Returns:
        the file written; nothing else has changed.

    Raises:
        OSError: writing fails, and no file is left.
    """
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            if flush:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def put_in_place(temporary: Path, path: Path, flush: bool = True) -> None:
    """The second half of `replace_file`: rename the file, and flush the name.

    Raises:
        OSError: writing fails.
    """
    os.replace(temporary, path)
    if flush:
        with contextlib.suppress(OSError):  # some file systems do not flush folders
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def link(path: Path, other: Path) -> None:
    """Make `other` a second name of a file, or a copy of it where the file system has no links.

    Raises:
        OSError: writing fails; what was at `other` is unchanged.
    """
    temporary = _beside(other)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    finally:
        _remove(temporary)  # where both are names of one file, the rename has done nothing


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with a text, in UTF-8. Bytes of file names that are not UTF-8 are written as they are.

    Raises:
        RunError: writing fails; what was at `path` is unchanged.
    """
    with writing(path):
        replace_file(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def append_line(path: Path, line: str) -> None:
    """Add a line and flush it to the disk. A last line without its end, cut off by a full disk or a kill, is removed.

    Raises:
        RunError: writing fails.
    """
    with writing(path), open(path, "a+b") as file:
        file.truncate(_end_of_lines(file))
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _end_of_lines(file: BinaryIO) -> int:
    """The number of bytes up to the end of the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager around the writing of `path` that converts an OSError into a RunError that names the file.

    Raises:
        RunError: writing fails.
    """
    try:
        yield
    except OSError as error:
        raise not_written(str(path), path, error, "the checkpoints are unchanged") from error


def not_written(what: str, path: Path, error: Exception, unchanged: str) -> RunError:
    """The error of a file that could not be written.

    Args:
        what: the file as the message calls it.
        unchanged: what is unchanged, for the end of the message.
    """
    if not path.parent.is_dir():
        return RunError(f"{what} could not be written: the folder {path.parent} is gone")
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return RunError(f"{what} could not be written: {reason}; {unchanged}")


def lock_within(seconds: float, lock: Callable[[int, int], object], file: int) -> bool:
    """Lock an open file against other processes; a holder that is suspended does not suspend this process too.

    Args:
        seconds: how long to wait for another holder.
        lock: fcntl.flock or fcntl.lockf.
        file: its descriptor.

    Returns:
        Whether it was locked in time.

    Raises:
        OSError: the file system has no locks.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # what POSIX has for "another holds it"
                raise
        if time.monotonic() > until:
            return False
        time.sleep(0.01)


def free_name(path: Path) -> Path:
    """The path, with a number if it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _beside(path: Path) -> Path:
    """A temporary name, with the host's name in it: on a shared disk two machines may have equal process ids."""
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the folder may be gone, or have become read-only
        temporary.unlink()
