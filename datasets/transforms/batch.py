"""The training augmentation on a whole batch, on the device that holds the images.

Each function equals the torchvision transform on PIL images at the same parameters, up to PIL's rounding to
256 levels after every step. Images are float32 (B, 3, H, W) in [0, 1] throughout.
"""

import torch
from torch import Tensor

from datasets.transforms.draws import CONTRAST, HUE, SATURATION, Parameters

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL converts RGB to L


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
    """Cut a box out of each image, resize it to size x size, and mirror it where `flips` says so.

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
    """Brightness, contrast or saturation, whichever is due for each image, in one pass.

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
    """Saves three quarters of the work. Asking which they are would make a GPU wait."""
    rows = torch.nonzero(due).flatten()
    if len(rows):
        images[rows] = shift_hue(images[rows], shift[rows])
    return images


def _turn_hue_of_all(images: Tensor, due: Tensor, shift: Tensor) -> Tensor:
    """The same, with the work done for every image and kept for those due."""
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
