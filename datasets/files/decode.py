"""Which files are pictures, and reading one as a viewer shows it: the same for files and for opened images."""

import importlib
import io
import os
import struct
import warnings
from functools import cache
from typing import BinaryIO, Optional, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from lib.errors import UnreadableImage, UserError, one_line

Source = Union[str, os.PathLike, Image.Image]

_VERSION = 2  # of how files are decoded: a cache of other pixels is not taken
_PLUGINS = ("pillow_heif", "pillow_avif", "pillow_jxl")
"""Packages that teach Pillow more formats: pillow-heif, pillow-avif-plugin, pillow-jxl-plugin."""

_NOT_DECODED = frozenset(["BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "PDF", "PALM"])
"""Formats with a suffix in Pillow that it recognises or writes only, or for which it starts another program."""

_UNREADABLE = frozenset((
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".wdp", ".hdp", ".jp2", ".j2k", ".webp", ".bpg", ".flif",
    ".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf", ".xcf", ".psb", ".exr", ".hdr", ".dcm", ".mng", ".3fr", ".arw",
    ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))  # fmt: skip
_UNUSED_ALPHA = frozenset(["BMP", "DIB", "TGA", "ICO", "CUR", "DDS"])
"""Formats whose fourth byte is often left at 0 in pictures without transparency; viewers then pass over it."""

_WHITE = (255, 255, 255, 255)
_SUB_BYTE = {"L;2": 85, "L;4": 17}  # PNG: a grey of 2 or 4 bits to one of 8
_PNG = b"\x89PNG\r\n\x1a\n"
_LONG_TEXT = 2**20  # bytes
_WHITE_IS_ZERO, _BITS_PER_SAMPLE = 262, 258  # TIFF's tags


@cache
def suffixes() -> frozenset[str]:
    """The endings of files, in lower case, that Pillow and the plugins installed for it can decode here."""
    _load_plugins()
    Image.init()
    decoded = {*Image.OPEN, "MPO"} - _NOT_DECODED  # MPO is opened as JPEG
    if not features.check("jpg_2000"):
        decoded.discard("JPEG2000")
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in decoded)


def is_image(path: str) -> bool:
    """Whether a file's name says that it is a picture that can be read."""
    return _suffix(path) in suffixes()


def is_unreadable_image(path: str) -> bool:
    """Whether a file's name says that it is a picture that nothing installed here can read."""
    return _suffix(path) in _UNREADABLE and not is_image(path)


def decoder() -> str:
    """What decodes here besides Pillow: the version of this file, and plugins with theirs."""
    return "/".join([str(_VERSION), *_load_plugins()])


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@cache
def _load_plugins() -> tuple[str, ...]:
    """Load those that are installed; their names and versions."""
    loaded = []
    for name in _PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(plugin, "register_heif_opener"):
            plugin.register_heif_opener()
        loaded.append(f"{name} {getattr(plugin, '__version__', '')}")
    return tuple(loaded)


def read_rgb(source: Source, at_least: Optional[int] = None) -> Image.Image:
    """The picture in a file, or that a caller has opened or made, upright, in mode RGB.

    Orientation in EXIF is applied. What is transparent shows white; an alpha channel of zeros alone is passed over in
    formats where it often has no meaning (BMP, TGA, ICO, DDS). Integer greys of more than 8 bits count as 16 bits, 0
    to 65,535, or as the bits that a TIFF file states, and are scaled. Of an animation the first frame is taken, of an
    opened one the frame it stands at. The suffix plays no part. Texts and colour profiles play no part either,
    however long.

    Memory is bounded by Pillow's limit of 179 million pixels, which is looked at before anything is decoded.

    Args:
        source: the path of a file, or an image, which stays as it is.
        at_least: pixels of each side that will do: a JPEG file that is much larger is decoded at a half, a quarter or
            an eighth of its size, which is several times faster. None: the whole image.

    Raises:
        UnreadableImage: the file cannot be read or is too large, or its numbers have no agreed meaning as colours.
    """
    is_image_object = isinstance(source, Image.Image)
    name = one_line((getattr(source, "filename", "") or "the image given") if is_image_object else os.fspath(source))
    _load_plugins()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that do not keep the image from being read
            file = _file_not_decoded_yet(source) if is_image_object else os.fspath(source)
            if file is None:
                source.load()
                return _as_rgb(source, "", name)
            try:
                return _decoded(file, at_least, name)
            except ValueError:
                shorter = _without_long_texts(file)
                if shorter is None:
                    raise
                return _decoded(shorter, at_least, name)
    except UserError:
        raise
    except Exception as error:  # each of Pillow's decoders has its own exceptions for bytes it cannot take
        reason = one_line(_reason(None if is_image_object else os.fspath(source), error))
        raise UnreadableImage(f"{name}: not readable as an image: {reason}; mend or remove it") from error


def _reason(path: Optional[str], error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which may be meant to use up the memory"
    if isinstance(error, UnidentifiedImageError):
        return "its format is not known" if path is None or os.path.getsize(path) else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _file_not_decoded_yet(image: Image.Image) -> Optional[BinaryIO]:
    """The bytes of the file that an image was opened from, if nothing has been read of its pixels so far.

    Decoded anew they give what the file gives: Pillow forgets how many bits a pixel had once it has decoded it.
    """
    file = getattr(image, "fp", None)
    if not getattr(image, "tile", None) or file is None or file.closed or image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    content = io.BytesIO(file.read())
    file.seek(place)
    return content


def _decoded(source: Union[str, BinaryIO], at_least: Optional[int], name: str) -> Image.Image:
    with Image.open(source) as file:
        raw_mode = _raw_mode(file)
        if at_least is not None:
            file.draft(None, (at_least, at_least))
        file.load()
        return _as_rgb(file, raw_mode, name)


def _raw_mode(file: Image.Image) -> str:
    """How the file holds a pixel, in Pillow's words; empty if that is not known."""
    arguments = file.tile[0][3] if getattr(file, "tile", None) else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _without_long_texts(file: Union[str, BinaryIO]) -> Optional[BinaryIO]:
    """A PNG file without texts and colour profiles that are compressed or long, which Pillow refuses; None for others.

    Texts that may state the orientation (XMP is seldom compressed) stay.
    """
    if isinstance(file, str):
        with open(file, "rb") as opened:
            content = opened.read()
    else:
        file.seek(0)
        content = file.read()
    if not content.startswith(_PNG):
        return None
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        compressed = kind in (b"zTXt", b"iCCP") or (kind == b"iTXt" and data.partition(b"\0")[2][:1] == b"\1")
        if not compressed and not (kind in (b"tEXt", b"iTXt") and length > _LONG_TEXT):
            kept.append(content[place : place + 12 + length])
        place += 12 + length
    return io.BytesIO(b"".join(kept))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block tells nothing; the pixels are fine
        return image.copy()


def _as_rgb(file: Image.Image, raw_mode: str, name: str) -> Image.Image:
    """Args: file: decoded. raw_mode: as `_raw_mode` found it before that."""
    image = _upright(file)
    if image.mode == "F":
        raise UnreadableImage(
            f"{name}: its pixels are floating-point numbers, which have no agreed range; convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I, which older Pillow uses for 16-bit files
        image = _eight_bits(image, file)
    elif image.mode == "La":
        image = image.convert("LA")
    if _is_transparent(image):
        transparent = image.info.get("transparency")
        if raw_mode in _SUB_BYTE and isinstance(transparent, int):  # Pillow compares it with the grey of 8 bits
            image.info["transparency"] = transparent * _SUB_BYTE[raw_mode]
        elif isinstance(transparent, tuple) and (raw_mode.startswith("RGB;16") or max(transparent) > 255):
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        image = image.convert("RGBA")
        if file.format in _UNUSED_ALPHA and image.getextrema()[3][1] == 0:
            return image.convert("RGB")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Greys of many bits, L, or LA where one of them stands for what is transparent. `file` may have TIFF's tags."""
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    largest = 2 ** min(bits, 16) - 1
    stored = np.asarray(image).astype(np.float64)
    values = stored.clip(0, largest)
    if image.mode.startswith("I;16") and tags.get(_WHITE_IS_ZERO) == 0:  # for fewer bits Pillow turns them round
        values = largest - values
    grey = Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(stored == transparent, 0, 255).astype(np.uint8)))
    return grey


def _is_transparent(image: Image.Image) -> bool:
    in_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or in_palette or "transparency" in image.info
