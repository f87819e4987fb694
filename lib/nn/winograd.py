"""3x3 convolutions of stride 1 by minimal filtering: 36 multiplications where direct convolution has 144.

For a tile of 4 x 4 outputs, with the 6 x 6 inputs d that they see and the 3 x 3 weights g, Lavin and Gray (2016,
"Fast Algorithms for Convolutional Neural Networks") write Winograd's F(4x4, 3x3) as

    y = A' [(G g G') * (B' d B)] A

where * multiplies element by element. Over many tiles and channels each of its 36 elements is one matrix product. The
backward pass is the same form read from right to left. In float32 the result is off by about 3e-6 of its size, that of
the plain sum by 1e-6, and that in bfloat16 by 3e-3.
"""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lib.compat import HAS_FAST_BATCHED_PRODUCTS

TILE_SIDE = 4
"""Of a tile of outputs; its inputs are two more."""

_INPUTS = TILE_SIDE + 2
_FROM_INPUTS = (  # B', for the points 0, 1, -1, 2, -2 and infinity
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FROM_WEIGHTS = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_TO_OUTPUTS = (  # A'
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)

# measured on two cores with AVX512, and with AVX2 alone, in PyTorch 2.14: with less of it the plain one is faster
_CHANNELS = 96
_WORK = 2**28  # pixels x channels in x channels out
_FILLED = 0.5  # of the area that the tiles cover


class WinogradConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 1 that is faster in training on large batches, and plain anywhere else.

    It adds no state to nn.Conv2d, so a layer is converted by assigning its class.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if self.training and torch.is_grad_enabled() and _pays(images, self.out_channels):
            return convolution(images, self.weight)
        return super().forward(images)


def use_winograd(network: nn.Module, device: torch.device, dtype: Optional[torch.dtype]) -> None:
    """Replace suitable 3x3 convolutions by `WinogradConvolution`, in float32 on a CPU; in place.

    On other devices products cost less beside the transforms; in bfloat16 the transforms would amplify the rounding.

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
        kind = type(layer)
        if kind is WinogradConvolution:
            layer.__class__ = nn.Conv2d
    return network


def _suits(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    usual = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and layer.bias is None
    return usual and min(layer.in_channels, layer.out_channels) >= _CHANNELS


def _pays(images: Tensor, kernels: int) -> bool:
    height, width = images.shape[2:]
    covered = -(-height // TILE_SIDE) * -(-width // TILE_SIDE) * TILE_SIDE**2
    work = images.numel() * kernels
    return images.dtype == torch.float32 and work >= _WORK and height * width >= _FILLED * covered


def convolution(images: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(images, weight, padding=1)`, with its gradients for both.

    Args:
        images: (B, C, H, W), fastest with the channels last in memory, as the result has them.
        weight: (K, C, 3, 3).

    Returns:
        (B, K, H, W).
    """
    return _Convolution.apply(images, weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        kernels = len(weight)
        down, across = -(-height // TILE_SIDE), -(-width // TILE_SIDE)
        tiles = _input_tiles(images, down, across)  # (36, batch * down * across * channels)
        inputs = (_both(_FROM_INPUTS, images) @ tiles).view(_INPUTS**2, -1, channels)
        weights = _both(_FROM_WEIGHTS, weight) @ weight.permute(2, 3, 0, 1).reshape(9, -1)
        weights = weights.view(_INPUTS**2, kernels, channels)
        products = torch.bmm(inputs, weights.transpose(1, 2)).view(_INPUTS**2, -1)
        outputs = _both(_TO_OUTPUTS, images) @ products
        ctx.save_for_backward(inputs, weights)
        ctx.shape = images.shape
        return _side_by_side(outputs.view(TILE_SIDE, TILE_SIDE, batch, down, across, kernels), height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Optional[Tensor], Optional[Tensor]]:
        inputs, weights = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        kernels = weights.shape[1]
        down, across = -(-height // TILE_SIDE), -(-width // TILE_SIDE)
        tiles = _output_tiles(upstream, down, across)  # (16, batch * down * across * kernels)
        outputs = (_both(_TO_OUTPUTS, upstream).t() @ tiles).view(_INPUTS**2, -1, kernels)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.bmm(outputs, weights).view(_INPUTS**2, -1)
            of_tiles = _both(_FROM_INPUTS, upstream).t() @ of_inputs
            of_images = _joined(of_tiles.view(_INPUTS, _INPUTS, batch, down, across, channels), height, width)
        if ctx.needs_input_grad[1]:
            of_weights = torch.bmm(outputs.transpose(1, 2), inputs).view(_INPUTS**2, -1)
            of_weight = _both(_FROM_WEIGHTS, upstream).t() @ of_weights
            of_weight = of_weight.view(3, 3, kernels, channels).permute(2, 3, 0, 1)
        return of_images, of_weight


def _both(matrix: tuple, like: Tensor) -> Tensor:
    """The Kronecker product that applies `matrix` to rows and columns of tiles that are laid out as columns."""
    one = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(one, one)


def _input_tiles(images: Tensor, down: int, across: int) -> Tensor:
    """(B, C, H, W) -> (36, B * down * across * C): tiles that overlap by two, with zeros around the image."""
    height, width = images.shape[2:]
    border = (0, 0, 1, 1 + across * TILE_SIDE - width, 1, 1 + down * TILE_SIDE - height)
    padded = F.pad(images.permute(0, 2, 3, 1), border)
    tiles = padded.unfold(1, _INPUTS, TILE_SIDE).unfold(2, _INPUTS, TILE_SIDE)  # (B, down, across, C, 6, 6), a view
    return tiles.permute(4, 5, 0, 1, 2, 3).reshape(_INPUTS**2, -1)


def _output_tiles(maps: Tensor, down: int, across: int) -> Tensor:
    """(B, K, H, W) -> (16, B * down * across * K): tiles side by side, with zeros where the last ones reach out."""
    height, width = maps.shape[2:]
    padded = maps.permute(0, 2, 3, 1)
    if (height, width) != (down * TILE_SIDE, across * TILE_SIDE):
        padded = F.pad(padded, (0, 0, 0, across * TILE_SIDE - width, 0, down * TILE_SIDE - height))
    tiles = padded.reshape(len(maps), down, TILE_SIDE, across, TILE_SIDE, maps.shape[1])
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(TILE_SIDE**2, -1)


def _side_by_side(tiles: Tensor, height: int, width: int) -> Tensor:
    """(4, 4, B, down, across, K) -> (B, K, H, W): `_output_tiles` in reverse."""
    _, _, batch, down, across, kernels = tiles.shape
    tiles = tiles.permute(2, 3, 0, 4, 1, 5)
    maps = _empty(batch, kernels, height, width, tiles)
    pixels = maps.permute(0, 2, 3, 1)
    if (height, width) == (down * TILE_SIDE, across * TILE_SIDE):
        pixels.view(tiles.shape).copy_(tiles)
    else:
        pixels.copy_(tiles.reshape(batch, down * TILE_SIDE, across * TILE_SIDE, kernels)[:, :height, :width])
    return maps


def _joined(tiles: Tensor, height: int, width: int) -> Tensor:
    """(6, 6, B, down, across, C) -> (B, C, H, W): the sum of what lies on each pixel; `_input_tiles` in reverse."""
    _, _, batch, down, across, channels = tiles.shape
    padded = tiles.new_zeros(batch, down * TILE_SIDE + 2, across * TILE_SIDE + 2, channels)
    places = padded.unfold(1, _INPUTS, TILE_SIDE).unfold(2, _INPUTS, TILE_SIDE)  # (B, down, across, C, 6, 6), a view
    for row in range(_INPUTS):
        for column in range(_INPUTS):
            places[..., row, column] += tiles[row, column]
    return _empty(batch, channels, height, width, tiles).copy_(
        padded[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)
    )


def _empty(batch: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """An uninitialised tensor, channels last and no view: a layer may change it in place and need not copy it."""
    shape = (batch, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
