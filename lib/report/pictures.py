"""Thumbnails of the data set's images, for the report."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from PIL import Image, ImageOps

from datasets.image_set import UNLABELLED, ImageSet
from lib.errors import not_none

THUMBNAIL_SIDE = 64
"""Pixels of a thumbnail's side; smaller images keep their size, and the page enlarges them."""
TINY = 24
"""Images up to this side are stored as PNG: JPEG would blur them."""


@dataclass(frozen=True)
class Picture:
    """One thumbnail with the name and label of its image."""

    index: int
    uri: str
    name: str
    """The file's name below the common folder, or `image 17`."""
    label: Optional[str]
    """Name of the class, or None."""

    @property
    def alt(self) -> str:
        """The text for a screen reader."""
        return self.name if self.label is None else f"{self.name}, class {self.label}"


class Pictures:
    """The thumbnails of a set of images.

    Args:
        images: N of them.
    """

    def __init__(self, images: ImageSet):
        self.images = images
        self._thumbnails: dict[int, Image.Image] = {}
        self._root = ""
        if images.paths is not None:
            self._root = os.path.commonpath({os.path.dirname(path) for path in images.paths})

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        return self.images.labels is not None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes if self.labelled else ()

    @property
    def labels(self) -> Optional[np.ndarray]:
        """(N,) int64, `UNLABELLED` for an image without a label; or None."""
        return self.images.labels

    def label_number(self, index: int) -> Optional[int]:
        """The class of an image, an index into `classes`; None where it has no label."""
        if not self.labelled or not_none(self.labels)[index] == UNLABELLED:
            return None
        return int(not_none(self.labels)[index])

    def label(self, index: int) -> Optional[str]:
        number = self.label_number(index)
        return None if number is None else self.classes[number]

    def same_class(self, one: int, other: int) -> Optional[bool]:
        """Whether two images have equal labels; None where one has none."""
        first, second = self.label_number(one), self.label_number(other)
        return None if first is None or second is None else first == second

    def name(self, index: int) -> str:
        if self.images.paths is None:
            return f"image {index}"
        return os.path.relpath(self.images.paths[index], self._root)

    def picture(self, index: int) -> Picture:
        """The thumbnail of an image.

        Raises:
            UserError: its file cannot be read.
        """
        return Picture(index, uri_of(self.thumbnail(index)), self.name(index), self.label(index))

    def thumbnail(self, index: int) -> Image.Image:
        """A square cut from the middle, at most `THUMBNAIL_SIDE` pixels wide."""
        if index not in self._thumbnails:
            image = self.images.read(index)
            side = min(THUMBNAIL_SIDE, *image.size)
            self._thumbnails[index] = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
        return self._thumbnails[index]

    def sheet(self, indices: Sequence[int], columns: int, tile: int) -> str:
        """Many thumbnails as one image, row by row, each in a square of `tile` pixels: its data URI."""
        rows = -(-len(indices) // columns)
        sheet = Image.new("RGB", (columns * tile, rows * tile))
        for place, index in enumerate(indices):
            image = self.thumbnail(index)
            if image.size != (tile, tile):
                image = image.resize((tile, tile), Image.Resampling.BILINEAR)
            sheet.paste(image, (place % columns * tile, place // columns * tile))
        return uri_of(sheet, lossless=tile <= TINY)


def uri_of(image: Image.Image, lossless: Optional[bool] = None) -> str:
    """The image as a data URI: PNG where it is tiny or must be lossless, else JPEG."""
    file = io.BytesIO()
    if max(image.size) <= TINY if lossless is None else lossless:
        kind = "png"
        image.save(file, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(file, "JPEG", quality=82, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers 0 to count - 1, evenly spaced, ascending; all of them if there are no more."""
    wanted = min(count, wanted)
    return [int((place + 0.5) * count / wanted) for place in range(wanted)]


def sample(count: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of the numbers 0 to count - 1 at random, ascending, a function of the arguments; or all of them."""
    if wanted >= count:
        return np.arange(count)
    # RandomState: numpy promises the same stream in all its versions
    return np.sort(np.random.RandomState(seed % 2**32).choice(count, wanted, replace=False))
