"""The text files of a session: written whole, and what is said when they cannot be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.errors import RunError


def replace_text(path: Path, text: str) -> None:
    """Write a file so that at any moment there is the old one or the new one.

    Raises:
        RunError: the disk refused; what was there is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        temporary.replace(path)


def append_line(path: Path, line: str) -> None:
    """Add a line and flush it to the disk.

    Raises:
        RunError: the disk refused.
    """
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """In which `path` is written.

    Raises:
        RunError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() else f"the folder {path.parent} is gone"
        raise RunError(f"{path} could not be written: {reason}; the checkpoints are as they were") from error
