"""The networks: an image in, a feature of unit length out."""

from typing import Optional

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.errors import UserError
from lib.seeding import derive
from models.alexnet import AlexNet
from models.convnet import ConvNet
from models.resnet import ResNet
from models.whitenet import WhiteNet

__all__ = ["AlexNet", "ConvNet", "ResNet", "WhiteNet", "build", "stem_for"]

_RESNETS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_OTHERS = {"alexnet": AlexNet, "convnet": ConvNet, "whitenet": WhiteNet}
_NAMES = (*_RESNETS, *_OTHERS)
_STEMS = ("auto", "small", "large")
_LARGE_FROM = 64  # pixels; below this the stride of a large stem leaves too little to look at


def stem_for(stem: str, size: int) -> str:
    """What `auto` means for images of `size` pixels; `small` and `large` as they are."""
    if stem != "auto":
        return stem
    return "small" if size < _LARGE_FROM else "large"


def build(
    name: str, low_dim: int, stem: str, size: int, init: str = "released", seed: Optional[int] = None
) -> nn.Module:
    """A network with random weights.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, resnet152, alexnet, convnet or whitenet, in either case.
        low_dim: length D of the feature.
        stem: `small` keeps the resolution of small images, `large` reduces that of large ones at once, and
            `auto` is small for images of less than 64 pixels.
        size: side of the images, in pixels.
        init: `released` is the authors' code's, PyTorch's own defaults: convolutions and linear layers, biases
            included, uniform in (-1/sqrt(fan_in), 1/sqrt(fan_in)). `torchvision` is that of torchvision's ResNets:
            convolutions normal with variance 2 / fan_out. Batch norm has scale 1 and shift 0 in both.
        seed: of the run; the weights are a function of it, and PyTorch's default generator is left seeded. None: the
            weights come from the generator as it stands.

    Returns:
        A module from images (B, 3, size, size) to features (B, low_dim), float32, of unit length. Its
        `stages` names the stages in order; `stage_outputs(images)` maps each name to the activations after it.

    Raises:
        UserError: there is no such network or stem, or they do not suit the size.
    """
    network = name.lower()
    if network not in _NAMES:
        raise UserError(f"--network {name}: no such network; known are: {', '.join(_NAMES)}")
    if stem not in _STEMS:
        raise UserError(f"--stem {stem}: no such stem; known are: {', '.join(_STEMS)}")
    small_stem = stem_for(stem, size) == "small"
    if network == "alexnet" and not small_stem and size < AlexNet.SMALLEST_LARGE:
        raise UserError(
            f"--stem {stem}: the large stem of alexnet needs images of at least {AlexNet.SMALLEST_LARGE} pixels "
            f"and --size is {size}; use --stem small"
        )
    if seed is not None:
        torch.manual_seed(derive(seed, "network"))
    if network in _RESNETS:
        block, layers = _RESNETS[network]
        built: nn.Module = ResNet(block, layers, low_dim, small_stem)
    else:
        built = _OTHERS[network](low_dim, small_stem)
    if init == "torchvision":
        for layer in built.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return built
