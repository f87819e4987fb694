"""Compares two sessions bit for bit, apart from the time they took."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import CHECKPOINT_NAME

_TIMES = ("seconds", "images_per_second")
_NOT_COMPARED = ("session", "options")  # a name, and options of one call


def differences(one: Path, other: Path) -> list[str]:
    """The differences of two session folders: names of checkpoints, their contents, and metrics."""
    first, second = _checkpoints(one), _checkpoints(other)
    if first.keys() != second.keys():
        return [f"checkpoints: {sorted(first)} and {sorted(second)}"]
    found = [f"metrics.jsonl: {one} and {other}"] if _metrics(one) != _metrics(other) else []
    for name in sorted(first):
        left, right = (dict(_leaves(checkpoint.load(path), "")) for path in (first[name], second[name]))
        names = sorted(left.keys() | right.keys())
        found += [f"{name}: {leaf}" for leaf in names if not _equal(left.get(leaf), right.get(leaf))]
    return found


def _checkpoints(session: Path) -> dict[str, Path]:
    """The last and the best of each round. Those before the last depend on when a run was saved."""
    paths = (session / "checkpoint").glob("*.ckpt")
    return {path.name: path for path in paths if (match := CHECKPOINT_NAME.fullmatch(path.name)) and not match[4]}


def _metrics(session: Path) -> list[dict[str, Any]]:
    lines = (session / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in _TIMES} for line in lines]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _TIMES and not (name == "" and key in _NOT_COMPARED):
                yield from _leaves(inner, f"{name}/{key}")
    else:
        yield name, value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_kind = one.dtype == other.dtype
        return same_kind and np.array_equal(one.numpy(), other.numpy(), equal_nan=one.is_floating_point())
    return type(one) is type(other) and one == other
