"""Recognises image files by their names, and decodes a file or an opened image to RGB as a viewer shows it."""

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

_VERSION = 2  # of the decoding; caches that another version wrote are not used
_PLUGINS = ("pillow_heif", "pillow_avif", "pillow_jxl")
"""Packages that add formats to Pillow: pillow-heif, pillow-avif-plugin, pillow-jxl-plugin."""

_NOT_DECODED = frozenset(["BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "PDF", "PALM"])
"""Formats whose suffixes Pillow knows, but which it does not decode, or decodes by another program."""

_UNREADABLE = frozenset((
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".wdp", ".hdp", ".jp2", ".j2k", ".webp", ".bpg", ".flif",
    ".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf", ".xcf", ".psb", ".exr", ".hdr", ".dcm", ".mng", ".3fr", ".arw",
    ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))  # fmt: skip
_UNUSED_ALPHA = frozenset(["BMP", "DIB", "TGA", "ICO", "CUR", "DDS"])
"""Formats whose alpha byte is often 0 in images without transparency; viewers then ignore it."""

_WHITE = (255, 255, 255, 255)
_SUB_BYTE = {"L;2": 85, "L;4": 17}  # PNG: a grey of 2 or 4 bits to one of 8
_PNG = b"\x89PNG\r\n\x1a\n"
_LONG_TEXT = 2**20  # bytes
_WHITE_IS_ZERO, _BITS_PER_SAMPLE = 262, 258  # TIFF's tags


@cache
def suffixes() -> frozenset[str]:
    """The file suffixes, in lower case, that Pillow and its installed plugins decode."""
    _load_plugins()
    Image.init()
    decoded = {*Image.OPEN, "MPO"} - _NOT_DECODED  # MPO is opened as JPEG
    if not features.check("jpg_2000"):
        decoded.discard("JPEG2000")
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in decoded)


def is_image(path: str) -> bool:
    """Whether a file has the suffix of an image that can be decoded here."""
    return _suffix(path) in suffixes()


def is_unreadable_image(path: str) -> bool:
    """Whether a file has the suffix of an image that nothing installed here decodes."""
    return _suffix(path) in _UNREADABLE and not is_image(path)


def decoder() -> str:
    """The versions of this file's decoding and of Pillow's installed plugins, for the keys of caches."""
    return "/".join([str(_VERSION), *_load_plugins()])


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@cache
def _load_plugins() -> tuple[str, ...]:
    """Loads the installed plugins. Returns their names and versions."""
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
    """Decodes an image file, or an image that the caller has opened or made, to mode RGB.

    EXIF orientation is applied. Transparent pixels become white; an alpha channel of zeros alone is ignored in formats
    where it often has no meaning (BMP, TGA, ICO, DDS). Integer greys of more than 8 bits are scaled from 16 bits, 0 to
    65,535, or from the number of bits that a TIFF file states. An animation gives its first frame, an opened one its
    current frame. The suffix, texts of any length and colour profiles are ignored.

    Memory is bounded by Pillow's limit of 179 million pixels, which is checked before anything is decoded.

    Args:
        source: the path of a file, or an image, which is not changed.
        at_least: smallest side needed, in pixels: a much larger JPEG file is decoded at a half, a quarter or an eighth
            of its size, which is several times faster. None: the whole image.

    Raises:
        UnreadableImage: the file cannot be read, is too large, or has pixel values without an agreed range.
    """
    path = None if isinstance(source, Image.Image) else os.fspath(source)
    name = one_line((getattr(source, "filename", "") or "the image given") if path is None else path)
    _load_plugins()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that do not prevent decoding
            if not isinstance(source, Image.Image):
                return _decoded(os.fspath(source), at_least, name)
            file = _file_not_decoded_yet(source)
            if file is not None:
                return _decoded(file, at_least, name)
            source.load()
            return _as_rgb(source, "", name)
    except UserError:
        raise
    except Exception as error:  # each of Pillow's decoders raises exceptions of its own for damaged bytes
        reason = one_line(_reason(path, error))
        raise UnreadableImage(f"{name}: not readable as an image: {reason}; replace or remove it") from error


def _reason(path: Optional[str], error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError) and Image.MAX_IMAGE_PIXELS is not None:
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which may be an attempt to exhaust the memory"
    if isinstance(error, UnidentifiedImageError):
        return "its format is not known" if path is None or os.path.getsize(path) else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _file_not_decoded_yet(image: Image.Image) -> Optional[BinaryIO]:
    """The bytes of the file that an image was opened from, if its pixels are not decoded yet; otherwise None.

    They are decoded as a file is: once Pillow has decoded a pixel, its original number of bits is lost.
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
    """Decodes a file or its bytes. A PNG file that Pillow refuses for its long texts is decoded without them."""
    try:
        return _decoded_once(source, at_least, name)
    except ValueError:
        shorter = _without_long_texts(source)
        if shorter is None:
            raise
        return _decoded_once(shorter, at_least, name)


def _decoded_once(source: Union[str, BinaryIO], at_least: Optional[int], name: str) -> Image.Image:
    with Image.open(source) as file:
        raw_mode = _raw_mode(file)
        if at_least is not None:
            file.draft(None, (at_least, at_least))
        file.load()
        return _as_rgb(file, raw_mode, name)


def _raw_mode(file: Image.Image) -> str:
    """Pillow's name of the file's pixel format; empty if it is not known."""
    tiles = getattr(file, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _without_long_texts(file: Union[str, BinaryIO]) -> Optional[BinaryIO]:
    """A PNG file without its compressed or long texts and colour profiles, which Pillow may refuse.

    Short uncompressed texts stay, since they may hold the orientation (XMP). None for other formats.
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
    except Exception:  # a damaged EXIF block is ignored: the pixels may be intact
        return image.copy()


def _as_rgb(file: Image.Image, raw_mode: str, name: str) -> Image.Image:
    """Converts a decoded image to upright RGB; `raw_mode` is the result of `_raw_mode` before the decoding."""
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
        if file.format in _UNUSED_ALPHA and image.getchannel("A").getextrema()[1] == 0:
            return image.convert("RGB")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Scales greys of many bits to mode L, or LA if one grey means transparent. `file` may hold TIFF's tags."""
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    largest = 2 ** min(bits, 16) - 1
    stored = np.asarray(image).astype(np.float64)
    values = stored.clip(0, largest)
    if image.mode.startswith("I;16") and tags.get(_WHITE_IS_ZERO) == 0:  # for fewer bits Pillow inverts them
        values = largest - values
    grey = Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(stored == transparent, 0, 255).astype(np.uint8)))
    return grey


def _is_transparent(image: Image.Image) -> bool:
    in_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or in_palette or "transparency" in image.info
