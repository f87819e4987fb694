"""Batches from images that live on the device as one uint8 tensor."""

from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from datasets import augment_parameters
from datasets.augment_batch import augment, resize_matrix
from datasets.augment_parameters import Parameters, Recipe
from lib.seeding import generator


def to_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) uint8 on the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)


class DeviceLoader:
    """Serves images of one size, augmented (with a recipe) or as they are (without).

    Args:
        images: (N, 3, H, W) uint8 on the device, from `to_device`.
        size: side of the images served, in pixels.
        resize: without a recipe, the shorter side is scaled to this before the centre crop of `size`.
        means, stds: of the channels, for images in [0, 1].
        recipe: the random augmentation, or None for test images.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        size: int,
        resize: int,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        recipe: Optional[Recipe],
        seed: int,
    ):
        self.images, device = images, images.device
        self.size, self.resize, self.recipe, self.seed, self.device = size, resize, recipe, seed, device
        self._means = torch.tensor(means, device=device)[None, :, None, None]
        self._stds = torch.tensor(stds, device=device)[None, :, None, None]

    def batches(self, order: Sequence[Tensor], salt: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, S, S) float32, normalised, and row numbers (B,), for every batch of `order`.

        Args:
            order: the row numbers of each batch, (B,) int64.
            salt: where in the run this is, e.g. (round, epoch); with the seed it decides the augmentation.
        """
        for step, rows in enumerate(order):
            indices = rows.to(self.device, non_blocking=True)
            images = self.images[indices].float().div_(255.0)
            if self.recipe is None:
                images = self._centre(images)
            else:
                images = augment(images, self._draw(len(rows), *salt, step), self.size)
            yield images.sub_(self._means).div_(self._stds), indices

    def close(self) -> None:
        """Nothing is held open here."""

    def _draw(self, count: int, *place: int) -> Parameters:
        height, width = self.images.shape[2:]
        drawn = augment_parameters.draw(count, height, width, self.recipe, generator(self.seed, "augment", *place))
        return drawn.to(self.device)

    def _centre(self, images: Tensor) -> Tensor:
        """Scale the shorter side to `resize`, then cut the central square of `size`, as the test transform does."""
        height, width = images.shape[2:]
        if (height, width, self.resize) == (self.size, self.size, self.size):
            return images
        rows = self._central_rows(height, self.resize * height // min(height, width))
        columns = self._central_rows(width, self.resize * width // min(height, width))
        return torch.matmul(rows, torch.matmul(images, columns.t()))

    def _central_rows(self, source: int, target: int) -> Tensor:
        """(size, source) weights of the central rows of an image scaled from `source` to `target` rows."""
        start, length = torch.tensor([0], device=self.device), torch.tensor([source], device=self.device)
        top = round((target - self.size) / 2.0)  # as torchvision's CenterCrop rounds
        return resize_matrix(start, length, source, target)[0, top : top + self.size]
