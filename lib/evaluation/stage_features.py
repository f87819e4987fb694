"""The activations of a network's stages as rows, for linear classifiers."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Stages = Callable[[Tensor], dict[str, Tensor]]


def pooled_side(channels: int, height: int, width: int, most: int) -> tuple[int, int]:
    """The largest map of equal sides, or the map itself, whose values times the channels are at most `most`."""
    side = max(1, math.isqrt(most // channels))
    return min(side, height), min(side, width)


def pooled(maps: Tensor, most: int) -> Tensor:
    """(B, C, H, W) by adaptive average pooling, or (B, D) as they are, to (B, d) float32 with d at most `most`.

    A map of more than `most` channels keeps one value of each.
    """
    maps = maps.float()
    if maps.dim() == 2:
        return maps
    height, width = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, pooled_side(maps.shape[1], height, width, most)).flatten(1)


@torch.no_grad()
def pooled_widths(outputs: Stages, images: Tensor, most: int) -> dict[str, int]:
    """d of every stage, in the order of the network, by a look at some images (B, 3, S, S)."""
    return {stage: pooled(maps, most).shape[1] for stage, maps in outputs(images).items()}


@torch.no_grad()
def stage_rows(
    outputs: Stages,
    batches: Iterable[tuple[Tensor, Tensor]],
    rows: slice,
    widths: dict[str, int],
    stages: Sequence[str],
    most: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The pooled activations of the named stages for every image.

    Args:
        outputs: images (B, 3, S, S) to the activations of every stage.
        batches: pairs of images and row numbers (B,), each row of `rows` once.
        rows: which rows come.
        widths: d of every stage.
        most: values of an image and stage.
        device: where the rows are kept.

    Returns:
        (rows, d) float32 for each stage.
    """
    count = rows.stop - rows.start
    kept = {stage: torch.empty(count, widths[stage], device=device) for stage in stages}
    for images, indices in batches:
        place = (indices - rows.start).to(device)
        found = outputs(images)
        for stage, into in kept.items():
            into[place] = pooled(found[stage], most).to(device)
    return kept
