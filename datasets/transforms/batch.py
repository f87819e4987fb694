"""Augments whole batches on the device that holds the images: random parameters, and the steps that use them.

The parameters follow the distributions of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and
RandomGrayscale. They are drawn on the CPU, so that a seed gives the same augmentation on every device. Each step equals
the torchvision transform of PIL images at the same parameters, up to PIL's rounding to 256 levels after every step.
Images are float32 (B, 3, H, W) in [0, 1] throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Generator, Tensor

ATTEMPTS = 10  # as torchvision: crops tried before the centre crop is taken
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL converts RGB to L


@dataclass(frozen=True)
class Recipe:
    """The ranges of the random draws: the options of these names, and `flip`, the probability of mirroring."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    colorjitter: tuple[float, float, float, float]
    random_grayscale: float
    flip: float


@dataclass(frozen=True)
class Parameters:
    """The random parameters of B images.

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

    @classmethod
    def joined(cls, draws: Sequence["Parameters"]) -> "Parameters":
        """The draws of several batches as that of one."""
        return cls(*(torch.cat(values) for values in zip(*(each._values for each in draws))))

    @property
    def _values(self) -> tuple[Tensor, ...]:
        return self.boxes, self.flips, self.order, self.factors, self.greys

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Parameters":
        return Parameters(*map(change, self._values))


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
    """(B, 4) crops: area uniform in `scale`, aspect ratio log-uniform in `ratio`, the first of ten draws that fits."""
    area = _uniform((count, ATTEMPTS), recipe.scale, generator) * (height * width)
    log_ratio = (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))
    aspect = torch.exp(_uniform((count, ATTEMPTS), log_ratio, generator))
    w = torch.round(torch.sqrt(area * aspect)).long()
    h = torch.round(torch.sqrt(area / aspect)).long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.long().argmax(dim=1, keepdim=True)  # argmax names the first of equals
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    # each position is equally likely: floor of a uniform number times the number of positions
    spread = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = (spread[0] * (height - h + 1)).long()
    left = (spread[1] * (width - w + 1)).long()
    boxes = torch.stack([top, left, h, w], dim=1)
    boxes[~fits.any(dim=1)] = torch.tensor(_central_box(height, width, recipe.ratio))
    return boxes


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central crop whose aspect ratio is allowed: used if no random one fits."""
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_orders(count: int, generator: Generator) -> Tensor:
    """(B, 4) the colour steps in random order, each image its own.

    Every order is equally likely for every image. Within a batch the hue steps are spread evenly over the four
    places (by a random permutation, not by independent draws), so that each place changes the hue of a known number of
    images.
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


def resize_matrix(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Weights of PIL's bilinear resize of the pixels [start, start + length) to `target` pixels.

    The triangle is as wide as a source pixel when enlarging and as wide as a target pixel when reducing
    (antialiasing); pixels outside the crop have no weight.

    Args:
        start, length: (B,) int64, in pixels.
        source: pixels in the uncropped row.
        target: pixels wanted.

    Returns:
        (B, target, source) float32, rows that sum to 1.
    """
    scale = length.float() / target  # (B,) source pixels per target pixel
    centre = (torch.arange(target, device=start.device) + 0.5)[None, :] * scale[:, None]  # (B, T), from the crop's edge
    pixel = torch.arange(source, device=start.device)[None, :] - start[:, None]  # (B, S), likewise
    distance = (pixel[:, None, :] + 0.5 - centre[:, :, None]).abs() / scale.clamp(min=1.0)[:, None, None]
    inside = (pixel >= 0) & (pixel < length[:, None])
    weights = (1.0 - distance).clamp(min=0.0) * inside[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def crop_resize(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut a box out of each image, resize it to size x size, and mirror it where `flips` is true.

    Two small matrix products per image: rows, then columns.

    Args:
        images: (B, 3, H, W). boxes: (B, 4) top, left, height, width. flips: (B,) bool.
    """
    batch, channels, height, width = images.shape
    top, left, h, w = boxes.unbind(1)
    rows = resize_matrix(top, h, height, size)  # (B, S, H)
    columns = resize_matrix(left, w, width, size)  # (B, S, W)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    across = torch.bmm(images.reshape(batch, channels * height, width), columns.transpose(1, 2))  # (B, 3H, S)
    return torch.matmul(rows[:, None], across.view(batch, channels, height, size))  # (B, 3, S, S)


def to_grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W) luminance."""
    red, green, blue = images.unbind(1)
    return (red * GREY[0] + green * GREY[1]).add_(blue, alpha=GREY[2])[:, None]


def blend_colours(images: Tensor, step: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast or saturation, whichever is due for each image, in one pass over the batch.

    All three mix the image with something darker or duller: with black, with its mean grey, with its own grey.
    An image whose step is hue passes unchanged.

    Args:
        images: (B, 3, H, W). step: (B,) int64, which of the four is due. factors: (B, 4).
    """
    factor = factors.gather(1, step[:, None])[:, 0]  # (B,)
    factor = torch.where(step == HUE, torch.ones_like(factor), factor)
    rest = 1.0 - factor
    grey = to_grey(images)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    duller = grey.mul_((rest * (step == SATURATION))[:, None, None, None])
    duller += mean * (rest * (step == CONTRAST))[:, None, None, None]
    return torch.addcmul(duller, images, factor[:, None, None, None]).clamp_(0.0, 1.0)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, (B,) in [-0.5, 0.5]; value and chroma stay.

    Each channel of a colour of hue h (in sixths of a circle), value v and chroma c is
    v - c * clip(min(k, 4 - k), 0, 1) with k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = images.unbind(1)
    value, minimum = images.amax(1), images.amin(1)
    chroma = value - minimum
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2.0, (red - green) / divisor + 4.0),
    )  # (B, H, W), in sixths; greys count as 0
    hue = sector + 6.0 * shift[:, None, None]
    n = torch.arange(5.0, 0.0, -2.0, device=images.device)[None, :, None, None]
    k = torch.remainder(hue[:, None] + n, 6.0)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp_(0.0, 1.0)


def colour_steps(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """The four colour steps, each image in its own order. `order`, `factors`: (B, 4) on the images' device."""
    turn_hue = _turn_hue_of_all if images.is_cuda else _turn_hue_of_those_due
    for place in range(4):
        step = order[:, place]
        images = turn_hue(blend_colours(images, step, factors), step == HUE, factors[:, HUE])
    return images


def _turn_hue_of_those_due(images: Tensor, due: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of only those images that are due: a quarter of the work, but on a GPU a synchronisation."""
    rows = torch.nonzero(due).flatten()
    if len(rows):
        images[rows] = shift_hue(images[rows], shift[rows])
    return images


def _turn_hue_of_all(images: Tensor, due: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of every image and keep the result for those that are due, without synchronising a GPU."""
    return torch.where(due[:, None, None, None], shift_hue(images, shift), images)


def augment(images: Tensor, parameters: Parameters, size: int) -> Tensor:
    """Crop, mirror, colour and grey, in torchvision's order.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        parameters: a draw for these images, on their device.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    images = crop_resize(images, parameters.boxes, parameters.flips, size)
    images = colour_steps(images, parameters.order, parameters.factors)
    return torch.where(parameters.greys[:, None, None, None], to_grey(images), images)
