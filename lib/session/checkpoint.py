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
round              number of the round, from 0
session            name of the session
format             version of this layout
options            the options of the run
precision          fp32 or bf16: what the network computed in
random             states of PyTorch's generators, and the seed
history            one summary for every round so far
dataset            name, size and fingerprint of the training images, their channel means and stds
=================  ==========================================================================
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lib.compat import load_data_only
from lib.errors import RunError, UserError

FORMAT = 1
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
"""What torch and pickle raise for bytes that are no checkpoint, or ask for more than data."""
REQUIRED = ("net", "optimizer", "npc", "ANs_discovery", "epoch", "round", "options")


def save(state: dict[str, Any], path: Path) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then move it into place.

    Raises:
        RunError: the disk refused; what was at `path` before is untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise RunError(f"checkpoint {path} could not be written: {error}; the one before it is as it was") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: the file is damaged, of a newer layout, or no checkpoint of this project.
    """
    state = read_data(path)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a run")
    missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise UserError(
            f"checkpoint {path} is not one of this project: it has no {', '.join(missing)}; --pretrained takes weights "
            "from other files"
        )
    if state.get("format", 0) > FORMAT:
        raise UserError(
            f"checkpoint {path} has layout {state['format']}; this version reads up to {FORMAT}: update the code"
        )
    return state


def read_data(path: Path) -> Any:
    """What a file written by `torch.save` holds, on the CPU. Nothing in it is executed.

    Raises:
        UserError: it is damaged, no such file, or holds more than plain data and tensors.
    """
    try:
        return load_data_only(str(path))
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}); it is damaged or no checkpoint") from error
