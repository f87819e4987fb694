"""Images, in memory or as files, with labels if there are any."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np
from PIL import Image

from datasets.image_file import read_rgb
from datasets.paths import Paths

UNLABELLED = -1
"""The label of an image that has none, where others have."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images.

    Attributes:
        source: the pixels, (N, H, W, 3) uint8, or the paths of N files, which are kept as `Paths`.
        labels: (N,) int64, indices into `classes`, `UNLABELLED` where an image has none; or None.
        classes: the names of the classes; empty without labels.
        files: the paths of the N files that pixels in memory were decoded from, or None.
        rows: (N,) int64, which images these are of a larger set that they were chosen from, or None.
    """

    source: Union[np.ndarray, Sequence[str]]
    labels: Optional[np.ndarray] = None
    classes: tuple[str, ...] = ()
    files: Optional[Paths] = None
    rows: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, (np.ndarray, Paths)):
            object.__setattr__(self, "source", Paths(self.source))
        pixels = self.pixels
        if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3):
            raise ValueError(f"pixels must be (N, H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
        if self.labels is not None and (self.labels.dtype != np.int64 or self.labels.shape != (len(self),)):
            raise ValueError(f"labels must be ({len(self)},) int64, not {self.labels.shape} {self.labels.dtype}")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def pixels(self) -> Optional[np.ndarray]:
        """(N, H, W, 3) uint8 when the images are in memory, otherwise None."""
        return self.source if isinstance(self.source, np.ndarray) else None

    @property
    def paths(self) -> Optional[Paths]:
        """The paths of the images' files, whether or not they are in memory now; None where there never were any."""
        return self.files if self.pixels is not None else self.source

    @property
    def numbers(self) -> np.ndarray:
        """(N,) int64, the row of each image in the data set as it was read, before some were left out."""
        return np.arange(len(self), dtype=np.int64) if self.rows is None else self.rows

    def read(self, index: int, at_least: Optional[int] = None) -> Image.Image:
        """One image, in mode RGB; `at_least` as in `read_rgb`.

        Raises:
            UserError: its file cannot be read.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        return read_rgb(self.source[index], at_least)

    def fingerprint(self) -> str:
        """Tells one set of images from another: a checksum of the pixels, or of the files' names below their folder.

        No file is opened for it.
        """
        digest = hashlib.blake2b(digest_size=16)
        if self.pixels is not None:
            digest.update(np.ascontiguousarray(self.pixels).data)
        else:
            root = os.path.commonpath({os.path.dirname(path) for path in self.source})
            for path in self.source:
                digest.update(os.fsencode(path[len(root) :]) + b"\0")
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images of these indices, in their order; the classes stay."""
        rows = np.asarray(indices, dtype=np.int64)
        paths = None if self.paths is None else Paths(self.paths[row] for row in rows)
        labels = None if self.labels is None else self.labels[rows]
        if self.pixels is None:
            return ImageSet(paths, labels, self.classes, rows=self.numbers[rows])
        return ImageSet(self.pixels[rows], labels, self.classes, paths, self.numbers[rows])


def limit(image_set: ImageSet, count: int, seed: int) -> ImageSet:
    """A random subset of `count` images, in order of index; all of them if there are no more than that.

    The choice depends on the seed and the number of images alone, and a smaller count chooses from what a larger
    one chooses.

    Args:
        seed: at least 0.
    """
    if count >= len(image_set):
        return image_set
    # RandomState: numpy promises the same stream in all its versions
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return image_set.subset(np.sort(random.permutation(len(image_set))[:count]))
