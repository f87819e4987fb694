"""Decodes image files into one array in memory: small images at their size, and with `--shrink` images of any size.

The array is cached on disk, so that the next run does not decode the files again.
"""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np
from PIL import Image, ImageOps

from datasets.files import cache
from datasets.files.cache import CACHE
from datasets.files.decode import read_rgb
from datasets.files.parallel import ReadingProgress, map_in_workers
from datasets.image_set import ImageSet
from lib.distributed.process_info import ProcessInfo
from lib.errors import UnreadableImage, UserError, one_line
from lib.logger.console import LOGGER
from lib.runtime.memory import physical_memory

log = logging.getLogger(LOGGER)

LARGEST_SIDE = 64  # pixels
LARGEST_ARRAY = 2**31  # bytes


def decode_small(images: ImageSet) -> Optional[ImageSet]:
    """The same images as one array, if they are files of small images of one size; None if they are not.

    The array is cached in a hidden folder beside the folder of the images. The name of the cache file is a checksum of
    the bytes of all image files and of the decoder's version, so that it is never used for other images.

    Raises:
        UnreadableImage: a file cannot be read as an image.
    """
    if isinstance(images.source, np.ndarray):
        return None
    size = _small_size(images.source[0])
    if size is None or size[0] * size[1] * 3 * len(images) > LARGEST_ARRAY:
        return None
    shape = (len(images), size[1], size[0], 3)
    file = cache.common_folder(images.source).parent / CACHE / f"{_checksum(images.source)}.npy"
    pixels = _read_cache(file, shape)
    if pixels is None:
        pixels = _decode(images, shape)
        if pixels is None:
            return None
        cache.write(file, lambda opened: np.save(opened, pixels, allow_pickle=False))
    return replace(images, source=pixels, files=images.source)


def _small_size(path: str) -> Optional[tuple[int, int]]:
    """(width, height) from the file's header; None for a large or unreadable image."""
    try:
        with Image.open(path) as file:
            return file.size if max(file.size) <= LARGEST_SIDE else None
    except Exception:  # decoding the whole file later reports the error
        return None


def _checksum(paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(cache.decoder_versions().encode(), digest_size=16)
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            reason = f"cannot be read: {error.strerror}; replace or remove it"
            raise UnreadableImage(f"{one_line(path)}: {reason}") from error
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
    except Exception:  # missing or damaged, for which numpy has many exceptions: decode again
        return None
    usable = isinstance(pixels, np.ndarray) and pixels.shape == shape and pixels.dtype == np.uint8
    return pixels if usable else None


OVERSIZE = 2  # an image is scaled down from at least this many times the side
_BLOCK = 1024  # images copied at a time
_WORTH_LOGGING = 64  # images; fewer are read within a moment


def shrink(images: ImageSet, side: int, workers_num: int, kind: str = "training", report: bool = True) -> ImageSet:
    """The same images as one array (N, side, side, 3): the middle square of each, scaled.

    The array is cached beside the folder of the images, or in the user's cache folder where nothing can be written
    there: the next run reads new and changed files only, and an interrupted pass resumes.

    Args:
        side: in pixels.
        workers_num: DataLoader workers that read; with 0 this process does.
        kind: of the images, for messages and the name of the cache: training and test files may share a folder.
        report: whether to log the progress.

    Raises:
        UserError: a file cannot be read as an image, or the array would take more than half of the memory.
        RunError: a worker died.
    """
    if isinstance(images.source, np.ndarray) or len(images) == 0:
        return images
    _check_memory(len(images), side)
    cached = _Cache(images.source, side, kind)
    pixels, done = cached.read()
    missing = np.flatnonzero(~done).tolist()
    if missing:
        if report and len(missing) > _WORTH_LOGGING:
            log.warning(
                "--shrink: reading %s %s images, %d pixels of each side are kept; this is done once",
                f"{len(missing):,}",
                kind,
                side,
            )
        progress = ReadingProgress(len(missing), "--shrink: read", kind)
        paths = [images.source[row] for row in missing]
        try:
            with closing(map_in_workers(partial(_square, side), paths, workers_num, "--shrink")) as squares:
                for row, square in zip(missing, squares):
                    pixels[row], done[row] = square, True
                    if report:
                        progress.advance()
        finally:
            cached.write(pixels, done)
    return replace(images, source=pixels, files=images.source)


def _square(side: int, path: str) -> np.ndarray:
    return np.asarray(middle_square(read_rgb(path, at_least=OVERSIZE * side), side))


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image, scaled to side x side pixels; an image of that size stays as it is."""
    # bilinear, as the transforms of the images: PIL smooths before it reduces
    return ImageOps.fit(image, (side, side), Image.BILINEAR)  # type: ignore[attr-defined]  # its types lack the name


def _check_memory(count: int, side: int) -> None:
    processes = ProcessInfo.here().local_size
    needed = processes * count * side * side * 3
    available = physical_memory()
    if needed > available // 2:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"--shrink {side}: {count:,} images{each} would take {needed / 2**30:.1f} of {available / 2**30:.1f} GiB "
            "of memory; choose fewer pixels, or null to read the files in every epoch"
        )


class _Cache:
    """A cache on disk of scaled squares by the keys of their files. A damaged or foreign file is ignored."""

    def __init__(self, paths: Sequence[str], side: int, kind: str):
        self._files = cache.cache_files(cache.common_folder(paths), f"shrunk-{side}-{kind}", "npz")
        self._keys = cache.file_keys(paths)
        self._shape = (len(paths), side, side, 3)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, side, side, 3), and which images the cache had, (N,) bool."""
        pixels, done = np.zeros(self._shape, dtype=np.uint8), np.zeros(self._shape[0], dtype=bool)
        for file in self._files:
            kept = _read(file, self._shape[1:])
            if kept is None:
                continue
            keys, squares = kept
            row_of = {key: row for row, key in enumerate(keys.tolist()) if key != cache.NOT_THERE}
            rows = np.array([row_of.get(key, -1) for key in self._keys.tolist()])
            found = (rows >= 0) & ~done
            chosen = np.flatnonzero(found)
            for first in range(0, len(chosen), _BLOCK):  # a copy of all would be a third array of this size
                part = chosen[first : first + _BLOCK]
                pixels[part] = squares[rows[part]]
            done |= found
        return pixels, done

    def write(self, pixels: np.ndarray, done: np.ndarray) -> None:
        """Store the squares that are done. Where nothing can be written, the next run reads the files again."""

        def content(file: BinaryIO) -> None:
            np.savez(file, keys=self._keys[done], pixels=pixels if done.all() else pixels[done])

        if done.any():
            any(cache.write(file, content) for file in self._files)  # the first that can be written


def _read(path: Path, shape: tuple[int, ...]) -> Optional[tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, pixels = file["keys"], file["pixels"]
    except Exception:  # numpy and zipfile have many exceptions for bytes they cannot take
        return None
    fits = keys.dtype == np.uint64 and pixels.dtype == np.uint8 and pixels.shape == (len(keys), *shape)
    return (keys, pixels) if fits else None
