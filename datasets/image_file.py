"""Reading one image file as a person would see it."""

import os
from typing import Optional

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.errors import UserError

_WHITE = (255, 255, 255, 255)


def read_rgb(path: str, at_least: Optional[int] = None) -> Image.Image:
    """The image in the file, upright, in mode RGB.

    Orientation in EXIF is applied. What is transparent shows white. Integer greys of more than 8 bits count as
    16 bits, 0 to 65,535, and are scaled. Of an animation the first frame is taken.

    Args:
        at_least: pixels of each side that will do: a JPEG file that is much larger is decoded at a half, a quarter or
            an eighth of its size, which is several times faster. None: the whole image.

    Raises:
        UserError: the file cannot be read, or its numbers have no agreed meaning as colours.
    """
    try:
        with Image.open(path) as file:
            if at_least is not None:
                file.draft(None, (at_least, at_least))
            file.load()
            image = _upright(file)
    except Exception as error:  # each of Pillow's decoders has its own exceptions for bytes it cannot take
        raise UserError(f"{path}: not readable as an image: {_reason(path, error)}; mend or remove it") from error
    return _as_rgb(image, path)


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if os.path.getsize(path) == 0 else "its format is not known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block tells nothing; the pixels are fine
        return image


def _as_rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(
            f"{path}: its pixels are floating-point numbers, which have no agreed range; convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I, which older Pillow uses for 16-bit files
        values = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    in_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or in_palette or "transparency" in image.info
