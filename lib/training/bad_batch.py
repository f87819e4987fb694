"""A note of the images in which a run came to grief, for a look at them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from torch import Tensor


def write_note(
    folder: Path, round_number: int, epoch: int, step: int, what: str, rows: Tensor, files: Optional[Sequence[str]]
) -> Path:
    """Write `not-finite-rRRRR-eEEEE-sSSSSSS.json`.

    Args:
        folder: of the session.
        epoch, step: counted from 1, as in the log.
        what: was not finite.
        rows: (B,) the numbers of the images among the training images.
        files: their paths, where they have some.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"not-finite-r{round_number:04d}-e{epoch:04d}-s{step:06d}.json"
    note = {
        "round": round_number,
        "epoch": epoch,
        "step": step,
        "not_finite": what,
        "indices": rows.tolist(),
        "files": files if files is None else list(files),
    }
    path.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return path
