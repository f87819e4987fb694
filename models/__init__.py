"""The networks: from an image to a feature of unit length."""

from typing import Optional

import torch
from torch import nn

from lib.config.registry import NETWORKS, find
from lib.errors import UserError
from lib.seeding import derive

__all__ = ["build", "stem_for"]

_STEMS = ("auto", "small", "large")
_LARGE_FROM = 64  # pixels; below this the stride of a large stem leaves maps of too few positions


def stem_for(stem: str, size: int) -> str:
    """The stem for images of `size` pixels: `auto` becomes `small` or `large`, which are returned unchanged."""
    if stem != "auto":
        return stem
    return "small" if size < _LARGE_FROM else "large"


def build(
    name: str, low_dim: int, stem: str, size: int, init: str = "released", seed: Optional[int] = None
) -> nn.Module:
    """A network with random weights.

    Args:
        name: one of `lib.config.registry.NETWORKS`, in either case.
        low_dim: length D of the feature.
        stem: `small` keeps the resolution of small images, `large` reduces that of large ones at once, and
            `auto` is small for images of less than 64 pixels.
        size: side of the images, in pixels.
        init: `released` is the authors' code's, PyTorch's own defaults: convolutions and linear layers, biases
            included, uniform in (-1/sqrt(fan_in), 1/sqrt(fan_in)). `torchvision` is that of torchvision's ResNets:
            convolutions normal with variance 2 / fan_out. Batch norm has scale 1 and shift 0 in both.
        seed: of the run; the weights are a function of it, and PyTorch's default generator is left seeded. None: the
            weights come from the default generator in its present state.

    Returns:
        A module from images (B, 3, size, size) to features (B, low_dim), float32, of unit length. Its
        `stages` names the stages in order; `stage_outputs(images)` maps each name to the activations after it.

    Raises:
        UserError: there is no such network or stem, or they do not suit the size.
    """
    network = name.lower()
    if network not in NETWORKS:
        raise UserError(f"--network {name}: no such network; known are: {', '.join(NETWORKS)}")
    if stem not in _STEMS:
        raise UserError(f"--stem {stem}: no such stem; known are: {', '.join(_STEMS)}")
    small_stem = stem_for(stem, size) == "small"
    kind = find(NETWORKS, network)
    smallest = getattr(kind, "SMALLEST_LARGE", 1)
    if not small_stem and size < smallest:
        raise UserError(
            f"--stem {stem}: the large stem of {network} needs images of at least {smallest} pixels "
            f"and --size is {size}; use --stem small"
        )
    if seed is not None:
        torch.manual_seed(derive(seed, "network"))
    built: nn.Module = kind(low_dim, small_stem)
    if init == "torchvision":
        for layer in built.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return built
