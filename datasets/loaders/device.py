"""Batches from images held on the device as one uint8 tensor, prepared on a side stream on CUDA."""

from collections.abc import Generator, Sequence
from typing import Callable, Optional, TypeVar

import numpy as np
import torch
from torch import Tensor

from datasets.transforms.batch import Parameters, Recipe, augment, draw
from lib.distributed.world import WHOLE, Share
from lib.seeding import generator

_BLOCK = 16  # images: 16 float32 numbers fill a cache line of 64 bytes

GPU_PIXELS = 2**20
"""Pixels that are prepared together on a GPU: 8 batches of 128 images of 32 x 32. The augmentation is some 200 small
kernels: launched once for all of them, they leave the host time to launch training steps."""


def to_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) uint8 on the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)


class DeviceLoader:
    """Serves images of one size, augmented (with a recipe) or as they are (without).

    Args:
        images: (N, 3, H, W) uint8 on the device, from `to_device`; without a recipe H = W = S.
        size: side of the images served, in pixels.
        means, stds: of the channels, for images in [0, 1].
        recipe: the random augmentation, or None for test images.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        size: int,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        recipe: Optional[Recipe],
        seed: int,
    ):
        self.images, device = images, images.device
        self.size, self.recipe, self.seed, self.device = size, recipe, seed, device
        self._means = torch.tensor(means, device=device)[None, :, None, None]
        self._stds = torch.tensor(stds, device=device)[None, :, None, None]

    def batches(
        self, order: Sequence[Tensor], context: tuple[int, ...], share: Share = WHOLE, start: int = 0
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Images (B, 3, S, S) float32, normalised, and row numbers (B,), for every batch of `order`.

        Args:
            order: the row numbers of each batch, (B,) int64.
            context: seed context, e.g. (round, epoch); with the seed it determines the augmentation.
            share: the part of each batch to serve; B is then the size of the part, which may be 0. An image is
                augmented as in the whole batch.
            start: the first batch to serve, counted from 0; earlier ones are skipped.
        """
        side_stream, together = SideStream(self.device), self.together(order)
        for group in range(start - start % together, len(order), together):
            steps = range(max(group, start), min(group + together, len(order)))
            spans = [share.span(len(order[step])) for step in steps]
            parts = [_in_blocks(span, len(order[step])) for step, span in zip(steps, spans)]
            images, indices = side_stream.run(
                self._make, [order[step] for step in steps], parts, [(*context, step) for step in steps]
            )
            first = 0
            for span, part in zip(spans, parts):
                served = slice(first + span.start - part.start, first + span.stop - part.start)
                yield images[served], indices[served]
                first += part.stop - part.start

    def close(self) -> None:
        """Does nothing: there are no workers."""

    def together(self, order: Sequence[Tensor]) -> int:
        """How many batches are prepared at a time."""
        if self.device.type != "cuda" or len(order) == 0:
            return 1  # a batch fits the caches of a CPU, several do not
        return max(1, GPU_PIXELS // (len(order[0]) * self.size**2))

    def _make(
        self, batches: Sequence[Tensor], parts: Sequence[slice], contexts: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, Tensor]:
        """The images and indices of these parts of the batches, one batch after the other."""
        indices = torch.cat([rows[part] for rows, part in zip(batches, parts)]).to(self.device, non_blocking=True)
        if not len(indices):
            return torch.empty(0, 3, self.size, self.size, device=self.device), indices
        images = self.images[indices].float().div_(255.0)
        if self.recipe is not None:
            height, width = self.images.shape[2:]
            drawn = [
                draw(len(rows), height, width, self.recipe, generator(self.seed, "augment", *context)).of(part)
                for rows, part, context in zip(batches, parts, contexts)
            ]
            images = augment(images, Parameters.joined(drawn).to(self.device), self.size)
        return images.sub_(self._means).div_(self._stds), indices


def _in_blocks(part: slice, count: int) -> slice:
    """A part of a batch of `count` images, widened to whole blocks of 16, the last one with what is left over.

    The last bit of a matrix product may depend on where in a cache line its numbers begin, and on whether an image
    is alone. 16 images of any size end with a cache line, so in whole blocks each image has the same bits as in the
    whole batch.
    """
    if part.start == part.stop:
        return part
    last = max(0, count // _BLOCK - 1) * _BLOCK  # where the last block begins
    start = min(part.start // _BLOCK * _BLOCK, last)
    stop = -(-part.stop // _BLOCK) * _BLOCK
    return slice(start, count if stop > last else stop)


Made = TypeVar("Made", bound=tuple[Tensor, ...])


class SideStream:
    """Runs work on a CUDA stream of its own, concurrently with the current stream; on a CPU directly.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which may still be writing the images

    def run(self, make: Callable[..., Made], *arguments: object) -> Made:
        """`make(*arguments)`. The current stream waits for the result; the host does not."""
        if self._stream is None:
            return make(*arguments)
        with torch.cuda.stream(self._stream):
            made = make(*arguments)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)  # otherwise the allocator could reuse its memory for the next batch
        return made
