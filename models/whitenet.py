"""A small residual network whose first layer whitens patches of the training images, with a feature of unit length."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PATCH = 3  # pixels a side
_PATCHES = 100_000
_SHRINK = 0.01
"""Share of the mean eigenvalue that is added to all: directions without variance stay finite."""


class WhiteNet(nn.Module):
    """Whitened 3x3 patches, two residual blocks of 64 and 128 channels, and a linear map of both to D; for short runs.

    The 54 filters of the stem are the eigenvectors of the training images' patches, scaled to unit variance, and their
    negatives; ReLU and 2x2 means follow. They are fitted to the images before the first step (`fit_stem`) and never
    trained (the idea: Coates, Ng and Lee 2011; Jordan 2024, airbench). All else starts from PyTorch's defaults. `fc`
    takes 4x4 means of layer1's maps and 2x2 means of layer2's (1,536 numbers), which keep coarse positions: against
    layer2's alone kNN gains 2.5 points on whitened backbone features (benchmarks/reports/2026-11-25-short-budgets.md).

    Args:
        low_dim: length D of the feature.
        small_stem: the stem halves the images' side; otherwise it has stride 2 and leaves a quarter of the side.
    """

    WIDTHS = (64, 128)
    """Channels after layer1 and layer2."""

    stages: tuple[str, ...] = ("stem", "layer1", "layer2", "fc")

    def __init__(self, low_dim: int, small_stem: bool):
        super().__init__()
        filters = 2 * 3 * _PATCH**2
        whiten = nn.Conv2d(3, filters, _PATCH, stride=1 if small_stem else 2, padding=_PATCH // 2, bias=False)
        whiten.weight.requires_grad_(False)
        self.stem = nn.Sequential(whiten, nn.ReLU(inplace=True), nn.AvgPool2d(2))
        self.layer1 = _Residual(filters, self.WIDTHS[0], stride=1)
        self.layer2 = _Residual(self.WIDTHS[0], self.WIDTHS[1], stride=2)
        self.pool1, self.pool2 = nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(16 * self.WIDTHS[0] + 4 * self.WIDTHS[1], low_dim)

    @torch.no_grad()
    def fit_stem(self, images: Tensor) -> None:
        """Fit the first filters to these images' patches.

        Args:
            images: (n, 3, S, S) float32, some training images as the network sees test images.
        """
        windows = images.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)  # (n, 3, rows, columns, 3, 3), a view
        places = len(images), *windows.shape[2:4]
        every = math.prod(places)
        chosen = np.unravel_index(np.arange(0, every, max(1, every // _PATCHES)), places)
        image, row, column = (torch.from_numpy(each).to(images.device) for each in chosen)
        patches = windows[image, :, row, column].reshape(-1, 3 * _PATCH**2).double()
        centred = patches - patches.mean(dim=0)
        variances, directions = torch.linalg.eigh(centred.t() @ centred / len(centred))
        floor = (_SHRINK * variances.mean()).clamp(min=1e-12)
        filters = (directions / (variances.clamp(min=0) + floor).sqrt()).t().reshape(-1, 3, _PATCH, _PATCH)
        whiten = self.stem[0]
        assert isinstance(whiten, nn.Conv2d)
        whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) float32, rows of unit length."""
        return self.stage_outputs(images)["fc"]

    def pooled(self, maps1: Tensor, maps2: Tensor) -> Tensor:
        """The maps of layer1 and layer2 -> (B, 1536), or twice as many in `WhiteNetWide`: what `fc` takes."""
        return torch.cat([self.pool1(maps1).flatten(1), self.pool2(maps2).flatten(1)], dim=1)

    def stage_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The activations after each stage, by name; `fc` is the feature."""
        outputs = {"stem": self.stem(images)}
        outputs["layer1"] = self.layer1(outputs["stem"])
        outputs["layer2"] = self.layer2(outputs["layer1"])
        features = self.fc(self.pooled(outputs["layer1"], outputs["layer2"]))
        # autocast leaves half precision here, whose squares may underflow
        outputs["fc"] = F.normalize(features.float(), dim=1)
        return outputs


class WhiteNetWide(WhiteNet):
    """WhiteNet with twice the channels, for half an hour and more: a step takes almost three times as long."""

    WIDTHS = (128, 256)


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm beside a 1x1 convolution with batch norm; ReLU after their sum."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))
