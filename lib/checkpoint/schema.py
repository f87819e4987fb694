"""Whether what a checkpoint holds is of the kinds that it should be of: it may come from anywhere."""

from collections.abc import Mapping
from typing import Any

import torch

REQUIRED = ("net", "optimizer", "npc", "ANs_discovery", "epoch", "round", "options")
_MAPPINGS = ("net", "optimizer", "npc", "ANs_discovery", "options", "underway", "dataset")
_COUNTS = ("epoch", "round", "step", "format")
_MOST = 10**9  # of rounds, epochs and steps: they become part of file names


def check_layout(state: Any) -> None:
    """Check the kinds of the values, not their sizes, which depend on the run.

    Raises:
        ValueError: going on from `checkpoint FILE`, what is wrong.
    """
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, not a run")
    missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise ValueError(f"is not one of this project: it has no {', '.join(missing)}")
    for name in _COUNTS:
        value = state.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
            raise ValueError(f"is not one of this project: its {name} is no count")
    for name in _MAPPINGS:
        if not isinstance(state.get(name, {}), Mapping):
            raise ValueError(f"is not one of this project: its {name} is no mapping")
    contents = state.get("dataset", {}).get("contents", [])
    if not isinstance(contents, list) or not all(type(each) is int for each in contents):
        raise ValueError("is not one of this project: its contents are no whole numbers")
    memory = state["npc"].get("memory")
    if not isinstance(memory, torch.Tensor) or memory.dim() != 2 or memory.dtype != torch.float32:
        raise ValueError("is not one of this project: its npc has no memory of N x D numbers")
    history = state.get("history", [])
    if not isinstance(history, list) or not all(_is_summary(entry) for entry in history):
        raise ValueError("is not one of this project: its history does not consist of numbers")
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state["net"].items()):
        raise ValueError("is not one of this project: its net does not consist of tensors")


def _is_summary(entry: Any) -> bool:
    """Whether it can be a `RoundSummary`."""
    return isinstance(entry, Mapping) and all(_is_figure(name, value) for name, value in entry.items())


def _is_figure(name: Any, value: Any) -> bool:
    """A number or None; whole ones for `clusters`, which is a list of sizes."""
    if name == "clusters":
        return value is None or (isinstance(value, list) and all(type(size) is int for size in value))
    return isinstance(name, str) and (value is None or isinstance(value, (int, float)))


def check_neighbourhoods(found: Mapping[str, Any], images: int) -> None:
    """Whether anchors and neighbours can be those of so many images: an index out of range ends in a crash, or worse.

    Raises:
        ValueError: they cannot; what is wrong with them.
    """
    tensors = {}
    for name, dimensions in (("anchor_indexes", 1), ("instance_indexes", 1), ("position", 1), ("neighbours", 2)):
        value = found.get(name)
        if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.dim() != dimensions:
            raise ValueError(f"its {name} are not whole numbers in {dimensions} dimension(s)")
        tensors[name] = value
    anchors, neighbours = tensors["anchor_indexes"], tensors["neighbours"]
    entropy = found.get("entropy")
    if not isinstance(entropy, torch.Tensor) or tuple(entropy.shape) != (images,):
        raise ValueError("its entropy is not one number for each image")
    if len(tensors["position"]) != images or len(anchors) + len(tensors["instance_indexes"]) != images:
        raise ValueError(f"its anchors and instances are not those of {images} images")
    if len(neighbours) != len(anchors):
        raise ValueError("its neighbours are not those of its anchors")
    for name, low, high in (
        ("anchor_indexes", 0, images),
        ("instance_indexes", 0, images),
        ("neighbours", 0, images),
        ("position", -1, len(anchors)),
    ):
        value = tensors[name]
        if value.numel() and not (low <= int(value.min()) and int(value.max()) < high):
            raise ValueError(f"its {name} lie outside {low} to {high - 1}")
    consistency = found.get("consistency")
    if consistency is not None and not isinstance(consistency, float):
        raise ValueError("its consistency is no number")
