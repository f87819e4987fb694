"""Where what was found out about image files is kept, and how it is written there."""

import contextlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Callable

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
