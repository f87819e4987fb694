"""`--shrink`: pictures read once, and kept as one array of small squares that fit in memory."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np
from PIL import Image, ImageOps

from datasets.files import image_cache
from datasets.files.decode import read_rgb
from datasets.files.parallel import ReadingProgress, in_processes
from datasets.image_set import ImageSet
from lib.errors import UserError
from lib.logger.console import LOGGER
from lib.runtime.memory import physical_memory

log = logging.getLogger(LOGGER)

ENOUGH = 2  # a picture is scaled down from at least so many times the side that is wanted
_WORTH_A_WORD = 64  # pictures; reading fewer takes a moment


def shrunk(images: ImageSet, side: int, workers_num: int, kind: str = "training", report: bool = True) -> ImageSet:
    """The same images as one array (N, side, side, 3): the middle square of each, scaled.

    What was made is kept beside the folder of the images, or in the user's cache folder where nothing can be written
    there, so that another run reads new and changed files only. A reading that was stopped goes on where it was.

    Args:
        side: in pixels.
        workers_num: processes that read; with 0 it is done in this one.
        kind: of the images, for messages.
        report: whether to log how far it is.

    Raises:
        UserError: a file cannot be read as an image, or the array would take more than half of the memory.
        RunError: a process that reads images died.
    """
    if images.pixels is not None or len(images) == 0:
        return images
    _check_memory(len(images), side)
    cache = _Cache(images.source, side)
    pixels, done = cache.read()
    missing = np.flatnonzero(~done).tolist()
    if missing:
        if report and len(missing) > _WORTH_A_WORD:
            log.warning(
                "--shrink: reading %s %s images, %d pixels of each side are kept; this is done once",
                f"{len(missing):,}",
                kind,
                side,
            )
        progress = ReadingProgress(len(missing), "--shrink: read", kind)
        paths = [images.source[row] for row in missing]
        try:
            with closing(in_processes(partial(_square, side), paths, workers_num, "--shrink")) as squares:
                for row, square in zip(missing, squares):
                    pixels[row], done[row] = square, True
                    if report:
                        progress.advance()
        finally:
            cache.write(pixels, done)
    return replace(images, source=pixels, files=images.source)


def _square(side: int, path: str) -> np.ndarray:
    return np.asarray(middle_square(read_rgb(path, at_least=ENOUGH * side), side))


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image, scaled to side x side pixels; an image of that size stays as it is."""
    # bilinear, as the transforms of the images: PIL smooths before it reduces
    return ImageOps.fit(image, (side, side), Image.BILINEAR)


def _check_memory(count: int, side: int) -> None:
    needed = count * side * side * 3
    available = physical_memory()
    if needed > available // 2:
        raise UserError(
            f"--shrink {side}: {count:,} images would take {needed / 2**30:.1f} of {available / 2**30:.1f} GiB of "
            "memory; choose fewer pixels, or null to read the files in every epoch"
        )


class _Cache:
    """Squares by the keys of their files. A damaged or foreign cache is passed over."""

    def __init__(self, paths: Sequence[str], side: int):
        self._places = image_cache.places(image_cache.common_folder(paths), f"shrunk-{side}", "npz")
        self._keys = image_cache.file_keys(paths)
        self._shape = (len(paths), side, side, 3)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, side, side, 3), and which of them are there, (N,) bool."""
        pixels, done = np.zeros(self._shape, dtype=np.uint8), np.zeros(self._shape[0], dtype=bool)
        for place in self._places:
            kept = _read(place, self._shape[1:])
            if kept is None:
                continue
            keys, squares = kept
            row_of = {key: row for row, key in enumerate(keys.tolist()) if key != image_cache.NOT_THERE}
            rows = np.array([row_of.get(key, -1) for key in self._keys.tolist()])
            found = (rows >= 0) & ~done
            pixels[found], done = squares[rows[found]], done | found
        return pixels, done

    def write(self, pixels: np.ndarray, done: np.ndarray) -> None:
        """Keep what is there. Where nothing can be written it will be read again next time."""

        def content(file: BinaryIO) -> None:
            np.savez(file, keys=self._keys[done], pixels=pixels if done.all() else pixels[done])

        if done.any():
            any(image_cache.write(place, content) for place in self._places)  # the first place that takes it


def _read(place: Path, shape: tuple[int, ...]) -> Optional[tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(place, allow_pickle=False) as file:
            keys, pixels = file["keys"], file["pixels"]
    except Exception:  # numpy and zipfile have many exceptions for bytes they cannot take
        return None
    fits = keys.dtype == np.uint64 and pixels.dtype == np.uint8 and pixels.shape == (len(keys), *shape)
    return (keys, pixels) if fits else None
