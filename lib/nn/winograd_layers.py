"""Which convolutions of a network go through `lib.nn.winograd`, and when."""

from typing import Optional

import torch
from torch import Tensor, nn

from lib.compat import HAS_FAST_BATCHED_PRODUCTS
from lib.nn.winograd import SIDE, convolution

# measured on two cores with AVX512, and with AVX2 alone, in PyTorch 2.14: with less of it the plain one is faster
_CHANNELS = 96
_WORK = 2**28  # pixels x channels in x channels out
_FILLED = 0.5  # of the area that the tiles cover


class WinogradConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 1 that is faster in training on large batches, and plain anywhere else.

    It has nothing that nn.Conv2d does not have, so a layer becomes the one or the other by its class alone.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if self.training and torch.is_grad_enabled() and _pays(images, self.out_channels):
            return convolution(images, self.weight)
        return super().forward(images)


def use_winograd(network: nn.Module, device: torch.device, dtype: Optional[torch.dtype]) -> None:
    """Let the convolutions that it suits go through `lib.nn.winograd`, in float32 on a CPU; in place.

    Elsewhere products cost less beside the transforms, and in bfloat16 what is rounded would be multiplied.

    Args:
        dtype: of autocast, or None for float32.
    """
    if device.type != "cpu" or dtype is not None or not HAS_FAST_BATCHED_PRODUCTS:
        return
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _suits(layer):
            layer.__class__ = WinogradConvolution


def count_winograd(network: nn.Module) -> int:
    """How many of its convolutions `use_winograd` has changed."""
    return sum(isinstance(layer, WinogradConvolution) for layer in network.modules())


def without_winograd(network: nn.Module) -> nn.Module:
    """The same network with plain convolutions; in place."""
    for layer in network.modules():
        if type(layer) is WinogradConvolution:
            layer.__class__ = nn.Conv2d
    return network


def _suits(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    usual = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and layer.bias is None
    return usual and min(layer.in_channels, layer.out_channels) >= _CHANNELS


def _pays(images: Tensor, kernels: int) -> bool:
    height, width = images.shape[2:]
    covered = -(-height // SIDE) * -(-width // SIDE) * SIDE**2
    work = images.numel() * kernels
    return images.dtype == torch.float32 and work >= _WORK and height * width >= _FILLED * covered
