"""What starts.jsonl says of one start of a run."""

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch

from datasets.pipeline import Pipeline
from lib.distributed.world import World
from lib.nn import precision
from lib.runtime import devices
from lib.session import provenance


def start_record(
    pipeline: Pipeline, world: World, dtype: Optional[torch.dtype], source: Optional[Path]
) -> dict[str, Any]:
    """Plain values, for `note_start`.

    Args:
        dtype: of autocast, or None.
        source: the checkpoint gone on from, or None.
    """
    return {
        "time": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": provenance.command_line(),
        "code": provenance.git_revision(),
        "versions": provenance.versions(),
        "device": devices.describe(world.device),
        "precision": precision.describe(dtype),
        "processes": world.size,
        "dataset": pipeline.name,
        "train_images": len(pipeline.train),
        "fingerprint": pipeline.fingerprint,
        "contents": _checksum(pipeline.contents),
        "test_images": 0 if pipeline.test is None else len(pipeline.test),
        "skipped_images": len(pipeline.skipped),
        "labels": pipeline.train.labels is not None,
        "went_on_from": None if source is None else str(source),
    }


def _checksum(contents: Sequence[int]) -> Optional[str]:
    """One text for the contents of all files that were looked at; None where the fingerprint tells all."""
    return hashlib.blake2b(repr(list(contents)).encode(), digest_size=8).hexdigest() if contents else None
