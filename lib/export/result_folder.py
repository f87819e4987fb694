"""A folder of results: written atomically, and never over other files."""

import csv
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lib.errors import Interrupted, RunError, UserError
from lib.pretrained.weights_file import NETWORK_JSON, NETWORK_STATE
from lib.runtime.stop_signals import StopSignals

FEATURES, IMAGES, NEIGHBOURS, DISTANCES = "features.npy", "images.csv", "neighbours.npy", "distances.npy"
CENTRES, ONNX, WHITENING = "centres.npy", "network.onnx", "whitening.npz"
STATE, DESCRIPTION = NETWORK_STATE, NETWORK_JSON
RESULTS = frozenset((FEATURES, IMAGES, NEIGHBOURS, DISTANCES, CENTRES, STATE, DESCRIPTION, ONNX, WHITENING))
"""The files that such a folder may hold."""


def check_free(option: str, path: Path, overwrite: bool) -> None:
    """Check that results may be written to `path`; call it before a long computation.

    Args:
        option: named in messages.
        path: of the folder; it may be there if it is empty.
        overwrite: whether an earlier result may be replaced. Nothing else ever is.

    Raises:
        UserError: it may not.
    """
    final = Path(os.path.realpath(path))  # the folder that a link leads to
    above = next((folder for folder in final.parents if os.path.exists(folder)), final)
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise UserError(f"{option} {path}: nothing can be written into {above}; choose another folder")
    if os.path.ismount(final):
        raise UserError(f"{option} {path}: a mounted folder cannot be replaced; name a new folder in it")
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UserError(f"{option} {path}: there is a file of that name; choose another folder")
    held = sorted(entry.name for entry in path.iterdir())
    if not held:
        return
    strange = [name for name in held if name not in RESULTS]
    if strange:
        raise UserError(
            f"{option} {path}: the folder holds other things ({', '.join(strange[:3])}), which are not touched; choose "
            "a new folder"
        )
    if not overwrite:
        raise UserError(f"{option} {path}: the folder holds an earlier result; choose another, or add --overwrite")


@contextmanager
def result_folder(option: str, path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `path`. It is renamed to `path` if the block succeeds, and deleted otherwise.

    Raises:
        UserError: as `check_free`.
        RunError: writing fails; what was at `path` is unchanged.
        Interrupted: Ctrl-C or SIGTERM came; likewise.
    """
    check_free(option, path, overwrite)
    with StopSignals(quiet=True) as stop:
        stop.raise_at_once(lambda number: Interrupted(number, f"{number.name}: stopped; nothing was written to {path}"))
        with _temporary_folder(option, path) as folder:
            yield folder


@contextmanager
def _temporary_folder(option: str, path: Path) -> Iterator[Path]:
    final = Path(os.path.realpath(path))  # the folder that a link leads to, not the link
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _swap_in(temporary, final)
    except OSError as error:
        raise RunError(f"{option} {path} could not be written: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, final: Path) -> None:
    """Rename the new folder to `final`; the old one is deleted last."""
    before = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        final.rename(before)
    try:
        temporary.rename(final)
    except BaseException:
        if before.exists() and not final.exists():
            before.rename(final)
        raise
    shutil.rmtree(before, ignore_errors=True)


def write_table(path: Path, columns: Mapping[str, Sequence]) -> None:
    """A line of names, then one line a row, in UTF-8.

    Texts are quoted, numbers are not; None is an empty text. So a line break in a text is kept, and a text of digits
    differs from a number. Names of files that are not UTF-8 are written byte for byte: Python gets them back
    with `errors="surrogateescape"`.

    Args:
        columns: the values of each column by its name, all of one length.
    """
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def cosine_distances(similarities: Tensor) -> Tensor:
    """1 - cosine, from 0 to 2; rounding can make a cosine slightly larger than 1."""
    return (1 - similarities).clamp_(min=0)
