"""Small images of one size, decoded once: from then on they are an array, in memory and in a cache beside them."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from datasets.files import image_cache
from datasets.files.image_cache import CACHE
from datasets.image_set import ImageSet
from lib.errors import UnreadableImage, one_line

LARGEST_SIDE = 64  # pixels
LARGEST_ARRAY = 2**31  # bytes


def decoded(images: ImageSet) -> Optional[ImageSet]:
    """The same images as one array, if they are files of small images of one size; None if they are not.

    What was decoded is kept in a hidden folder beside the folder of the images, under a name that is a checksum over
    the bytes of all the files and over what decodes them: a cache is never taken for other images. Where nothing can
    be written there, nothing is kept.

    Raises:
        UnreadableImage: a file cannot be read as an image.
    """
    size = _small_size(images.source[0])
    if size is None or size[0] * size[1] * 3 * len(images) > LARGEST_ARRAY:
        return None
    shape = (len(images), size[1], size[0], 3)
    file = image_cache.common_folder(images.source).parent / CACHE / f"{_checksum(images.source)}.npy"
    pixels = _read_cache(file, shape)
    if pixels is None:
        pixels = _decode(images, shape)
        if pixels is None:
            return None
        image_cache.write(file, lambda opened: np.save(opened, pixels, allow_pickle=False))
    return replace(images, source=pixels, files=images.source)


def _small_size(path: str) -> Optional[tuple[int, int]]:
    """(width, height) from the file's head, None if it is large or does not say."""
    try:
        with Image.open(path) as file:
            return file.size if max(file.size) <= LARGEST_SIDE else None
    except Exception:  # reading it in earnest will name what is wrong
        return None


def _checksum(paths) -> str:
    digest = hashlib.blake2b(image_cache.release().encode(), digest_size=16)
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{one_line(path)}: cannot be read: {error.strerror}; mend or remove it") from error
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _decode(images: ImageSet, shape: tuple[int, ...]) -> Optional[np.ndarray]:
    """All images, or None as soon as one has another size."""
    pixels = np.empty(shape, dtype=np.uint8)
    for row in range(len(images)):
        image = np.asarray(images.read(row))
        if image.shape != shape[1:]:
            return None
        pixels[row] = image
    return pixels


def _read_cache(file: Path, shape: tuple[int, ...]) -> Optional[np.ndarray]:
    try:
        pixels = np.load(file, allow_pickle=False)
    except Exception:  # not there, or bytes that numpy cannot take, for which it has many exceptions: decode again
        return None
    usable = isinstance(pixels, np.ndarray) and pixels.shape == shape and pixels.dtype == np.uint8
    return pixels if usable else None
