"""Reading one image file as a person would see it."""

import os
import warnings
from typing import Optional

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.errors import UnreadableImage, UserError, one_line

_WHITE = (255, 255, 255, 255)


def read_rgb(path: str, at_least: Optional[int] = None) -> Image.Image:
    """The image in the file, upright, in mode RGB.

    Orientation in EXIF is applied. What is transparent shows white. Integer greys of more than 8 bits count as
    16 bits, 0 to 65,535, and are scaled. Of an animation the first frame is taken. The suffix plays no part.

    Memory is bounded by Pillow's limit of 179 million pixels, which is looked at before anything is decoded.

    Args:
        at_least: pixels of each side that will do: a JPEG file that is much larger is decoded at a half, a quarter or
            an eighth of its size, which is several times faster. None: the whole image.

    Raises:
        UnreadableImage: the file cannot be read or is too large, or its numbers have no agreed meaning as colours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that do not keep the image from being read
            with Image.open(path) as file:
                if at_least is not None:
                    file.draft(None, (at_least, at_least))
                file.load()
                image = _upright(file)
            return _as_rgb(image, path)
    except UserError:
        raise
    except Exception as error:  # each of Pillow's decoders has its own exceptions for bytes it cannot take
        reason = one_line(_reason(path, error))
        raise UnreadableImage(f"{one_line(path)}: not readable as an image: {reason}; mend or remove it") from error


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which may be meant to use up the memory"
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
        raise UnreadableImage(
            f"{one_line(path)}: its pixels are floating-point numbers, which have no agreed range; convert it to 8 or "
            "16 bits"
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
