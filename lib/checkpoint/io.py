"""Checkpoints on disk: written whole or not at all, read without executing anything.

Layout of the file (a dict of plain data and tensors):

=================  ==========================================================================
key                what
=================  ==========================================================================
net                state dict of the network
optimizer          state dict of the optimiser
npc                {"memory": (N, D) bank}
ANs_discovery      anchors and neighbours, see `Neighbourhoods.state_dict`
acc                top-1 of this epoch's evaluation as a share of 1, or None
epoch              epochs completed in the round
step               batches learnt from in the epoch after these; 0 where a checkpoint is written after an epoch
underway           sums over these batches, see `Underway.state`
round              number of the round, from 0
session            name of the session
format             version of this layout
options            the options of the run
precision          fp32 or bf16: what the network computed in
random             states of PyTorch's generators, and the seed
history            one summary for every round so far
nearest            {round: (S,) nearest images of a sample, see `lib.evaluation.bank_statistics`}
baselines          {name: top-1} of what needs no learning, see `lib.evaluation.baselines`
dataset            name, size and fingerprint of the training images, contents of some, channel means and stds
=================  ==========================================================================
"""

import contextlib
import os
from pathlib import Path
from typing import Any, Optional

import torch

from lib.checkpoint.schema import check_layout
from lib.checkpoint.sealed_file import Seal, SealingWriter, has_seal, read_seal
from lib.compat import load_data_only
from lib.errors import RunError, UserError

FORMAT = 2
"""1 had no checksum (`sealed_file`) and was written after epochs only; it is read as well."""


def write(state: dict[str, Any], path: Path) -> Path:
    """Write a checkpoint beside `path` and flush it to the disk; the caller moves it to where it belongs.

    Returns:
        the file written; nothing else has changed.

    Raises:
        RunError: the disk refused.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            sealing = SealingWriter(file, FORMAT)
            torch.save(state, sealing)
            sealing.finish()
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # the folder may be gone, or have become read-only
            temporary.unlink()
        raise not_written(path, error) from error
    return temporary


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        RunError: the disk refused; what was at `path` before is untouched.
    """
    temporary = write(state, path)
    try:
        os.replace(temporary, path)
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> RunError:
    """What the user is told when a checkpoint cannot be written."""
    if not path.parent.is_dir():
        return RunError(f"checkpoint {path} could not be written: the folder {path.parent} is gone")
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return RunError(f"checkpoint {path} could not be written: {reason}; the one before it is as it was")


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: the file is empty, cut short or changed, of a newer layout, or no checkpoint of this project.
    """
    seal = _checked_seal(path)
    state = read_data(path)
    try:
        check_layout(state)
    except ValueError as error:
        raise UserError(f"checkpoint {path} {error}") from None
    layout = state.get("format", 0)
    _check_format(path, layout)
    if seal is None and layout > 1:
        raise UserError(
            f"checkpoint {path} has lost its checksum, so it may be damaged; if you changed it yourself, write it with "
            "lib.checkpoint.io.save"
        )
    return state


def _checked_seal(path: Path) -> Optional[Seal]:
    try:
        seal = read_seal(path)
    except ValueError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}); it is damaged or no checkpoint") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if seal is not None and not seal.intact:
        raise UserError(f"checkpoint {path} is damaged: its content does not match its checksum")
    if seal is not None:
        _check_format(path, seal.format)
    return seal


def _check_format(path: Path, layout: int) -> None:
    if layout > FORMAT:
        raise UserError(f"checkpoint {path} has layout {layout}; this version reads up to {FORMAT}: update the code")


def read_foreign(path: Path) -> Any:
    """As `read_data`, of a file that others may have written, with any release of PyTorch. If it is one of ours its
    checksum is looked at.

    Raises:
        UserError: as `read_data`; or it does not match its checksum.
    """
    try:
        ours = has_seal(path)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if ours:
        _checked_seal(path)
    return read_data(path, old_releases=True)


def read_data(path: Path, old_releases: bool = False) -> Any:
    """What a file written by `torch.save` holds, on the CPU. Nothing in it is executed.

    Raises:
        UserError: it is damaged, no such file, or holds more than plain data and tensors.
    """
    try:
        return load_data_only(str(path), old_releases)
    except Exception as error:  # torch, zipfile and pickle have many exceptions for bytes they cannot take
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}); it is damaged or no checkpoint") from error
