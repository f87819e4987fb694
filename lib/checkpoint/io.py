"""The checkpoint file: a dict of plain data and tensors that `torch.save` writes, with a checksum.

Layout of the file (a dict of plain data and tensors):

=================  ==========================================================================
key                what
=================  ==========================================================================
net                state dict of the network
optimizer          state dict of the optimiser
npc                {"memory": (N, D) bank}
ANs_discovery      anchors and neighbours, see `lib.method.neighbourhoods.SAVED`
acc                top-1 of this epoch's evaluation as a share of 1, or None
epoch              epochs completed in the round
step               batches trained on in the next epoch; 0 where a checkpoint is written after an epoch
underway           sums over these batches: `EpochProgress` without `step`
round              number of the round, from 0
session            name of the session
format             version of this layout
options            the options of the run
precision          fp32 or bf16: what the network computed in
random             states of PyTorch's generators, and the seed
history            one summary for every round so far
nearest            {round: (S,) nearest images of a sample, see `lib.evaluation.bank_statistics`}
clusters           of the round that this checkpoint ends, see `Clusters.state`; otherwise empty
baselines          {name: top-1} of what needs no learning, see `lib.evaluation.baselines`
dataset            name, size and fingerprint of the training images, contents of some, channel means and stds
=================  ==========================================================================

The file is a zip archive and ends in the comment `AND checkpoint, format F, sha256 H`, where H is that of all bytes of
the file before H. A comment is part of the zip format, so torch.load and unzip read the file as it is.
"""

import hashlib
import os
import pickle
import re
import stat
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional, Union

import torch

from lib import compat
from lib.checkpoint.unpickler import DataUnpickler, is_of_old_release, not_data
from lib.errors import RunError, UserError
from lib.runtime.atomic import not_written, put_in_place, write_beside

FORMAT = 2
"""Version of the layout."""

REQUIRED = ("net", "optimizer", "npc", "ANs_discovery", "epoch", "round", "options")
_MAPPINGS = ("net", "optimizer", "npc", "ANs_discovery", "options", "underway", "dataset", "clusters")
_COUNTS = ("epoch", "round", "step", "format")
_LIMIT = 10**9  # of rounds, epochs and steps: they become part of file names


_START = b"PK\x03\x04"  # how a zip archive with something in it begins
_END = b"PK\x05\x06"  # how its last record begins, 22 bytes without a comment
_END_BYTES = 22
_COMMENT = re.compile(rb"AND checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})")
_NAME = b"AND checkpoint, format "
_DIGITS = 64
_LONGEST_COMMENT = 120
_BLOCK = 2**20
_PARTS = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        RunError: writing fails; what was at `path` before is untouched.
    """
    temporary = write(state, path)
    try:
        put_in_place(temporary, path)
    except OSError as error:
        raise write_failed(path, error) from error


def write(state: dict[str, Any], path: Path) -> Path:
    """Write a checkpoint beside `path` and flush it to the disk; the caller moves it to where it belongs.

    Returns:
        the file written; nothing else has changed.

    Raises:
        RunError: writing fails.
    """

    def content(file: BinaryIO) -> None:
        with_checksum = _ChecksumWriter(file, FORMAT)
        torch.save(state, with_checksum)  # type: ignore[arg-type]  # torch.save asks for write() and flush() alone
        with_checksum.finish()

    try:
        return write_beside(path, content)
    except (OSError, RuntimeError) as error:
        raise write_failed(path, error) from error


def write_failed(path: Path, error: Exception) -> RunError:
    """The error of a checkpoint that could not be written."""
    return not_written(f"checkpoint {path}", path, error, "the one before it is unchanged")


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: the file is empty, cut short or changed, of a newer layout, or not a checkpoint of this project.
    """
    checksum = _checked_checksum(path)
    state = read_data(path)
    try:
        check_layout(state)
    except ValueError as error:
        raise UserError(f"checkpoint {path} {error}") from None
    _check_format(path, state.get("format", 0))
    if checksum is None:
        raise UserError(
            f"checkpoint {path} has lost its checksum, so it may be damaged; if you changed it yourself, write it with "
            "lib.checkpoint.io.save"
        )
    return state


def read_foreign(path: Path) -> Any:
    """Read a file that others may have written with `torch.save`, of any release of PyTorch, onto the CPU. The checksum
    of a checkpoint of this project is verified.

    Raises:
        UserError: as `read_data`; or the file does not match its checksum.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_COMMENT))
            ours = _NAME in file.read()
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if ours:
        _checked_checksum(path)
    return read_data(path, old_releases=True)


def read_data(path: Path, old_releases: bool = False) -> Any:
    """Read what `torch.save` wrote, onto the CPU. Nothing in the file is executed.

    Args:
        old_releases: whether a file from before PyTorch 1.6 may be read too.

    Raises:
        UserError: the file is damaged, was not written by torch.save, or holds more than plain data and tensors.
    """
    try:
        return load_data_only(str(path), old_releases)
    except Exception as error:  # torch, zipfile and pickle have many exceptions for bytes they cannot take
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}); it is damaged or not a checkpoint") from error


def load_data_only(path: str, old_releases: bool = False) -> Any:
    """Load a file written by `torch.save`, on the CPU, without executing anything it contains.

    Tensors, numbers, strings and the usual containers are read; any other object is refused.

    Args:
        old_releases: whether a file written before PyTorch 1.6 may be read too, such as the authors' checkpoints.

    Raises:
        pickle.UnpicklingError: the file asks for something other than data.
        Exception: whatever torch raises for a file that is damaged or is not a checkpoint.
    """
    if not (old_releases and is_of_old_release(path)):
        check_archive(path)
    if compat.HAS_WEIGHTS_ONLY:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files that it then refuses
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its advice is to load the file unsafely
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = not_data(named[1]) if named else "torch.save did not write it"
            raise pickle.UnpicklingError(reason) from error
    restricted = types.ModuleType("restricted_pickle")
    vars(restricted).update(
        Unpickler=DataUnpickler, load=lambda file, **arguments: DataUnpickler(file, **arguments).load()
    )
    return torch.load(path, map_location="cpu", pickle_module=restricted)


def check_archive(path: str) -> None:
    """Check that a file is an archive that torch.save wrote, and nothing else.

    torch.load also takes TorchScript archives, which contain code; tar files and bare pickles of old releases; and
    compressed archives, which may unpack to any size.

    Raises:
        pickle.UnpicklingError: the file is not such an archive, or contains other entries.
        zipfile.BadZipFile, OSError: the file is damaged or cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise pickle.UnpicklingError("the file is not a zip archive, which torch.save writes")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    folder = names[0].partition("/")[0] + "/" if names else ""
    if f"{folder}data.pkl" not in names or len(set(names)) < len(names):
        raise pickle.UnpicklingError("the archive is not one of torch.save's")
    for entry in entries:
        part = entry.filename[len(folder) :]
        if not entry.filename.startswith(folder) or not (part in _PARTS or _is_storage(part)):
            raise pickle.UnpicklingError(f"the archive contains {entry.filename!r}, which is not plain data")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise pickle.UnpicklingError(f"the archive's {entry.filename!r} is compressed, which torch.save never does")


def _is_storage(part: str) -> bool:
    folder, _, number = part.partition("/")
    return folder == "data" and number.isdecimal()


class _Checksum(NamedTuple):
    """The content of the comment: the version of the layout, and whether the checksum matches."""

    format: int
    matches: bool


def _checked_checksum(path: Path) -> Optional[_Checksum]:
    """The verified checksum of a file; None for a zip archive without one.

    Raises:
        UserError: the file is not an archive, is damaged, or is of a newer layout.
    """
    try:
        checksum = _read_checksum(path)
    except ValueError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}); it is damaged or not a checkpoint") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if checksum is not None:
        if not checksum.matches:
            raise UserError(f"checkpoint {path} is damaged: its content does not match its checksum")
        _check_format(path, checksum.format)
    return checksum


def _check_format(path: Path, layout: int) -> None:
    if layout > FORMAT:
        raise UserError(f"checkpoint {path} has layout {layout}; this version reads up to {FORMAT}: update the code")


def _read_checksum(path: Path) -> Optional[_Checksum]:
    """The checksum in a file's comment, compared with the content; None for a zip archive without one.

    Raises:
        ValueError: the file is empty, cut short, not a zip archive, or not a regular file; the message
            says which.
        OSError: the file cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError("the file is empty")
        head = file.read(len(_START))
        if head != _START:
            if not head.strip(b"\0"):
                raise ValueError("it begins with zeros: its content never reached the disk")
            raise ValueError("it was not written by torch.save")
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
        return _Checksum(int(match[1]), _digest(file, size - _DIGITS) == match[2].decode())


def _digest(file: BinaryIO, count: int) -> str:
    """SHA-256 of the next `count` bytes."""
    digest = hashlib.sha256()
    while count > 0:
        block = file.read(min(count, _BLOCK))
        if not block:
            break
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


class _ChecksumWriter:
    """Writes to `file` what torch.save writes, and appends the comment.

    A write that fails is remembered, not raised: torch's writer, which calls this from C++, would try again and could
    end the process. `finish` raises it.
    """

    def __init__(self, file: BinaryIO, layout: int):
        self._file, self._layout = file, layout
        self._digest = hashlib.sha256()
        self._tail = b""  # the last bytes so far: perhaps the zip record that holds the length of the comment
        self._error: Optional[OSError] = None

    def write(self, data: bytes) -> int:
        """Write bytes, as a file does."""
        view = memoryview(data).cast("B")
        if len(view) >= _END_BYTES:
            self._pass_on(self._tail)
            self._pass_on(view[:-_END_BYTES])
            self._tail = bytes(view[-_END_BYTES:])
        else:
            joined = self._tail + bytes(view)
            self._pass_on(joined[:-_END_BYTES])
            self._tail = joined[-_END_BYTES:]
        return len(view)

    def flush(self) -> None:
        """Does nothing; torch calls it."""

    def finish(self) -> None:
        """Write the comment.

        Raises:
            OSError: this or an earlier write failed.
            ValueError: what was written is not a zip archive.
        """
        if self._tail[:4] != _END or self._tail[-2:] != b"\0\0":
            raise self._error or ValueError("torch.save did not write a zip archive")
        text = f"AND checkpoint, format {self._layout}, sha256 ".encode()
        self._pass_on(self._tail[:-2] + (len(text) + _DIGITS).to_bytes(2, "little") + text)
        self._pass_on(self._digest.hexdigest().encode())
        if self._error is not None:
            raise self._error

    def _pass_on(self, data: Union[bytes, memoryview]) -> None:
        if self._error is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        else:
            self._digest.update(data)


def check_layout(state: Any) -> None:
    """Validate the keys and types of a checkpoint. Its sizes depend on the run and are checked there.

    Raises:
        ValueError: a key or type is wrong; the message is a sentence that begins with `checkpoint FILE`.
    """
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, not a run")
    missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise ValueError(f"is not one of this project: it has no {', '.join(missing)}")
    for name in _COUNTS:
        value = state.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LIMIT:
            raise ValueError(f"is not one of this project: its {name} is not a count")
    for name in _MAPPINGS:
        if not isinstance(state.get(name, {}), Mapping):
            raise ValueError(f"is not one of this project: its {name} is not a mapping")
    contents = state.get("dataset", {}).get("contents", [])
    if not isinstance(contents, list) or not all(type(each) is int for each in contents):
        raise ValueError("is not one of this project: its contents are not whole numbers")
    memory = state["npc"].get("memory")
    if not isinstance(memory, torch.Tensor) or memory.dim() != 2 or memory.dtype != torch.float32:
        raise ValueError("is not one of this project: its npc has no memory of N x D numbers")
    if state.get("clusters") and not _are_clusters(state["clusters"], memory.shape[1]):
        raise ValueError("is not one of this project: its clusters have no centres of as many numbers as the memory")
    history = state.get("history", [])
    if not isinstance(history, list) or not all(_is_summary(entry) for entry in history):
        raise ValueError("is not one of this project: its history does not consist of numbers")
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state["net"].items()):
        raise ValueError("is not one of this project: its net does not consist of tensors")


def _are_clusters(value: Mapping[str, Any], dim: int) -> bool:
    """Whether the value is a `Clusters.state`: K x D finite centres, and two texts."""
    centres, texts = value.get("centres"), (value.get("asked"), value.get("explanation"))
    if not all(isinstance(text, str) for text in texts) or not isinstance(centres, torch.Tensor):
        return False
    shape_fits = centres.dim() == 2 and centres.shape[0] > 0 and centres.shape[1] == dim
    return shape_fits and centres.dtype == torch.float32 and bool(torch.isfinite(centres).all())


def _is_summary(entry: Any) -> bool:
    """Whether the entry is a `lib.session.metrics.Round`: numbers by name."""
    return isinstance(entry, Mapping) and all(_is_figure(name, value) for name, value in entry.items())


def _is_figure(name: Any, value: Any) -> bool:
    """A number or None; whole ones for `clusters`, which is a list of sizes."""
    if name == "clusters":
        return value is None or (isinstance(value, list) and all(type(size) is int for size in value))
    return isinstance(name, str) and (value is None or isinstance(value, (int, float)))
