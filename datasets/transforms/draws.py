"""Random parameters of the training augmentation, drawn for a whole batch at once.

The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and
RandomGrayscale; `datasets/augment_batch.py` applies them. Drawing happens on the CPU, so that a seed gives the
same augmentation whatever device the images are on.
"""

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Generator, Tensor

ATTEMPTS = 10  # as torchvision: crops tried before the centre crop is taken
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Recipe:
    """What may be drawn: the options of those names, and `flip`, the probability of mirroring."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    colorjitter: tuple[float, float, float, float]
    random_grayscale: float
    flip: float


@dataclass(frozen=True)
class Parameters:
    """One draw for B images.

    Attributes:
        boxes: (B, 4) int64, top, left, height, width of the crop, in pixels of the source.
        flips: (B,) bool.
        order: (B, 4) int64, which colour step comes first, second, third, fourth.
        factors: (B, 4) float32 for brightness, contrast, saturation (1 changes nothing) and hue (0 changes nothing).
        greys: (B,) bool.
    """

    boxes: Tensor
    flips: Tensor
    order: Tensor
    factors: Tensor
    greys: Tensor

    def to(self, device: torch.device) -> "Parameters":
        """The same draw on another device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def of(self, rows: slice) -> "Parameters":
        """The part of the draw that is for these rows of the batch."""
        return self._each(lambda value: value[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Parameters":
        return Parameters(*map(change, (self.boxes, self.flips, self.order, self.factors, self.greys)))


def draw(count: int, height: int, width: int, recipe: Recipe, generator: Generator) -> Parameters:
    """Parameters for `count` images of height x width pixels."""
    return Parameters(
        boxes=draw_boxes(count, height, width, recipe, generator),
        flips=torch.rand(count, generator=generator) < recipe.flip,
        order=draw_orders(count, generator),
        factors=draw_factors(count, recipe, generator),
        greys=torch.rand(count, generator=generator) < recipe.random_grayscale,
    )


def draw_boxes(count: int, height: int, width: int, recipe: Recipe, generator: Generator) -> Tensor:
    """(B, 4) crops: area uniform in `scale`, aspect ratio log-uniform in `ratio`, the first of ten that fits."""
    area = _uniform((count, ATTEMPTS), recipe.scale, generator) * (height * width)
    log_ratio = (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))
    aspect = torch.exp(_uniform((count, ATTEMPTS), log_ratio, generator))
    w = torch.round(torch.sqrt(area * aspect)).long()
    h = torch.round(torch.sqrt(area / aspect)).long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.long().argmax(dim=1, keepdim=True)  # argmax names the first of equals
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    # each place is equally likely: floor of a uniform number times the count of places
    spread = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = (spread[0] * (height - h + 1)).long()
    left = (spread[1] * (width - w + 1)).long()
    boxes = torch.stack([top, left, h, w], dim=1)
    boxes[~fits.any(dim=1)] = torch.tensor(_central_box(height, width, recipe.ratio))
    return boxes


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central crop whose aspect ratio is allowed: what is taken when no random one fitted."""
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_orders(count: int, generator: Generator) -> Tensor:
    """(B, 4) the colour steps in random order, each image its own.

    Every order is equally likely for every image. Within a batch the hue steps are spread evenly over the four
    places (a shuffled deal, not independent draws), so that each place changes the hue of a known number of images.
    """
    offset = int(torch.randint(4, (1,), generator=generator))
    dealt = (torch.arange(count) + offset) % 4
    place_of_hue = dealt[torch.randperm(count, generator=generator)]  # (B,)
    others = torch.rand(count, 3, generator=generator).argsort(dim=1)  # (B, 3) brightness, contrast, saturation
    place = torch.arange(4).expand(count, 4)
    index = (place - (place > place_of_hue[:, None]).long()).clamp(max=2)
    return others.gather(1, index).masked_fill(place == place_of_hue[:, None], HUE)


def draw_factors(count: int, recipe: Recipe, generator: Generator) -> Tensor:
    """(B, 4) brightness, contrast, saturation uniform in [max(0, 1 - v), 1 + v]; hue uniform in [-v, v]."""
    brightness, contrast, saturation, hue = recipe.colorjitter
    ranges = [(max(0.0, 1 - v), 1 + v) for v in (brightness, contrast, saturation)] + [(-hue, hue)]
    return torch.stack([_uniform((count,), limits, generator) for limits in ranges], dim=1)


def _uniform(shape: tuple[int, ...], limits: tuple[float, float], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (limits[1] - limits[0]) + limits[0]
