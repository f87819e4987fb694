"""Transforms a PIL image into the float32 tensor (3, S, S) that the network takes.

PIL resizes, bilinear, and always smooths before it reduces. torchvision's `antialias` concerns tensors alone, so every
release of torchvision gives the same pixels.
"""

from typing import Optional

from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

_BILINEAR = InterpolationMode.BILINEAR
_LONG = 20  # longer side over shorter side


def train_transform(
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    colorjitter: tuple[float, float, float, float],
    random_grayscale: float,
    random_horizontal_flip: bool,
    means: tuple[float, ...],
    stds: tuple[float, ...],
) -> transforms.Compose:
    """The random augmentation of training images, in the order of the authors' code.

    The crop comes first, so that the colour steps, each of which rounds to 256 levels, process fewer pixels.
    The grey step comes after the colour steps, which would colour a grey image again.

    Args:
        size: side of the result, in pixels.
        scale: smallest and largest share of the area to crop.
        ratio: smallest and largest width over height of the crop; log-uniform between them.
        colorjitter: strength of brightness, contrast, saturation and hue; their order is random.
        random_grayscale: probability of grey.
        random_horizontal_flip: whether half of the images are mirrored.
        means, stds: per channel, for images in [0, 1].
    """
    flip = [transforms.RandomHorizontalFlip()] if random_horizontal_flip else []
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(scale), tuple(ratio), interpolation=_BILINEAR),
            *flip,
            transforms.ColorJitter(*colorjitter),
            transforms.RandomGrayscale(random_grayscale),
            transforms.ToTensor(),
            transforms.Normalize(means, stds),
        ]
    )


def test_transform(
    size: int, resize: Optional[int], means: tuple[float, ...], stds: tuple[float, ...]
) -> transforms.Compose:
    """The transform of test images: scales the shorter side to `resize`, or to `size` if None, and crops the centre.

    A very long image is cropped to its middle before it is scaled: 20,000 x 1 pixels scaled to a height of 256 would
    take 4 GB.
    """
    return transforms.Compose(
        [
            _middle_of_long,
            transforms.Resize(resize or size, interpolation=_BILINEAR),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(means, stds),
        ]
    )


def _middle_of_long(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = _LONG * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
