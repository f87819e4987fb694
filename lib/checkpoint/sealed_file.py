"""A file that says whether it is whole: a zip archive, as torch.save writes it, with a checksum in its comment.

The comment is the last thing in the file and part of the zip format, so that torch.load, unzip and every other reader
take the file as it is. It reads `AND checkpoint, format F, sha256 H`; H is that of all bytes of the file before H.
Comment and content are one file and appear together: there is no moment at which one is there without the other.
"""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

_START = b"PK\x03\x04"  # how a zip archive with something in it begins
_END = b"PK\x05\x06"  # how its last record begins, 22 bytes without a comment
_END_BYTES = 22
_COMMENT = re.compile(rb"AND checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})")
_NAME = b"AND checkpoint, format "
_DIGITS = 64
_LONGEST_COMMENT = 120
_BLOCK = 2**20


class Seal(NamedTuple):
    """What the comment says: the version of the layout inside, and whether the content is as it was written."""

    format: int
    intact: bool


class SealingWriter:
    """Passes on to `file` what torch.save writes, and closes it with the comment.

    A write that fails is remembered, not raised: torch's writer, which calls this from C++, would try to go on and
    could end the process. `finish` raises it.
    """

    def __init__(self, file: BinaryIO, layout: int):
        self._file, self._layout = file, layout
        self._digest = hashlib.sha256()
        self._tail = b""  # perhaps the last record, which has to learn of the comment
        self._error: Optional[OSError] = None

    def write(self, data: bytes) -> int:
        """As that of a file."""
        data = memoryview(data).cast("B")
        if len(data) >= _END_BYTES:
            self._pass_on(self._tail)
            self._pass_on(data[:-_END_BYTES])
            self._tail = bytes(data[-_END_BYTES:])
        else:
            joined = self._tail + bytes(data)
            self._pass_on(joined[:-_END_BYTES])
            self._tail = joined[-_END_BYTES:]
        return len(data)

    def flush(self) -> None:
        """torch calls it; there is nothing to do before the end."""

    def finish(self) -> None:
        """Write the comment.

        Raises:
            OSError: this or an earlier write failed.
            ValueError: what was written is no zip archive.
        """
        if self._tail[:4] != _END or self._tail[-2:] != b"\0\0":
            raise self._error or ValueError("torch.save did not write a zip archive")
        text = f"AND checkpoint, format {self._layout}, sha256 ".encode()
        self._pass_on(self._tail[:-2] + (len(text) + _DIGITS).to_bytes(2, "little") + text)
        self._pass_on(self._digest.hexdigest().encode())
        if self._error is not None:
            raise self._error

    def _pass_on(self, data: bytes) -> None:
        if self._error is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        else:
            self._digest.update(data)


def has_seal(path: Path) -> bool:
    """Whether a file ends in our comment, be it whole or damaged.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_COMMENT))
        return _NAME in file.read()


def read_seal(path: Path) -> Optional[Seal]:
    """What a file says about itself; None for a zip archive without our comment, as older versions wrote it.

    Raises:
        ValueError: it is empty, cut short, no zip archive at all, or no file but a pipe or the like; the message says
            which.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no ordinary file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError("the file is empty")
        head = file.read(len(_START))
        if head != _START:
            if not head.strip(b"\0"):
                raise ValueError("it begins with zeros: its content never reached the disk")
            raise ValueError("it is no file of torch.save's")
        file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT))
        tail = file.read()
        found = tail.rfind(_END)
        if found < 0:
            raise ValueError(f"it is cut short or its end is damaged, after {size:,} bytes")
        comment = tail[found + _END_BYTES :]
        if not comment:
            return None
        match = _COMMENT.fullmatch(comment)
        if match is None:
            raise ValueError("its checksum is damaged")
        file.seek(0)
        return Seal(int(match[1]), _digest(file, size - _DIGITS) == match[2].decode())


def _digest(file: BinaryIO, count: int) -> str:
    digest = hashlib.sha256()
    while count > 0:
        block = file.read(min(count, _BLOCK))
        if not block:
            break
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()
