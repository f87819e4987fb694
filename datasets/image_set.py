"""A data set: its training and test images, each in memory or as files, with labels if there are any."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional, Union, overload

import numpy as np
from PIL import Image

from datasets.files.decode import read_rgb
from lib.errors import one_line

UNLABELLED = -1
"""The label of an unlabelled image in a set that has labels."""

_SAMPLED = 256  # files that `contents` opens
_PIECE = 4096  # bytes that it reads of a file at its start, its middle and its end


class Paths(Sequence[str]):
    """N paths as one block of bytes.

    A million separate strings take several times the memory, and every DataLoader worker ends up with its own copy:
    reading a string writes its reference count, and a written page is no longer shared with the parent process.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._text = b"".join(encoded)
        self._ends = np.zeros(len(encoded) + 1, dtype=np.int64)  # path i is from the i-th number to the next
        np.cumsum([len(path) for path in encoded], out=self._ends[1:])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[str, tuple[str, ...]]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(len(self))))
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self._text[self._ends[row] : self._ends[row + 1]])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images, in memory or as files, with their labels if there are any.

    Attributes:
        source: the pixels, (N, H, W, 3) uint8, or the paths of N files, which are kept as `Paths`.
        labels: (N,) int64, indices into `classes`, `UNLABELLED` for an image without a label; or None.
        classes: the names of the classes; empty without labels, except the name of the class if there is only one.
        files: the paths of the N files that pixels in memory were decoded from, or None.
        rows: (N,) int64, the row numbers of these images in the set that they are a subset of, or None.
    """

    source: Union[np.ndarray, Sequence[str]]
    labels: Optional[np.ndarray] = None
    classes: tuple[str, ...] = ()
    files: Optional[Sequence[str]] = None
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
    def paths(self) -> Optional[Sequence[str]]:
        """The paths of the images' files, also of pixels in memory; None for images that do not come from files."""
        return self.files if isinstance(self.source, np.ndarray) else self.source

    @property
    def numbers(self) -> np.ndarray:
        """(N,) int64, the row of each image in the data set as it was read, before any subset."""
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
        """A checksum of the pixels, or of the files' names below their folder; no file is opened."""
        digest = hashlib.blake2b(digest_size=16)
        if self.pixels is not None:
            digest.update(np.ascontiguousarray(self.pixels).data)
        else:
            root = os.path.commonpath({os.path.dirname(path) for path in self.source})
            for path in self.source:
                digest.update(os.fsencode(path[len(root) :]) + b"\0")
        return digest.hexdigest()

    def contents(self) -> list[int]:
        """A checksum of 31 bits for each of an even sample of the files: of its size and some of its bytes.

        0 for a file that cannot be read. Empty for pixels in memory, which `fingerprint` covers.
        """
        return [] if self.pixels is not None else [_content(self.source[row]) for row in _even_sample(len(self))]

    def replaced(self, before: Optional[Sequence[int]]) -> "Replaced":
        """The files whose checksums differ from `before`, earlier `contents`; none if `before` is unknown."""
        paths = self.paths
        if paths is None or not before:
            return Replaced((), 0)
        rows = _even_sample(len(self))
        if len(rows) != len(before):
            return Replaced((), 0)
        now = [_content(paths[row]) for row in rows]
        other = [row for row, one, two in zip(rows, before, now) if one and two and one != two]
        return Replaced(tuple(paths[row] for row in other), len(rows))

    def subset(self, indices: Union[Sequence[int], np.ndarray]) -> "ImageSet":
        """The images at these indices, in this order, with the same classes."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        if not isinstance(self.source, np.ndarray):
            paths = Paths(self.source[row] for row in rows)
            return ImageSet(paths, labels, self.classes, rows=self.numbers[rows])
        files = None if self.files is None else Paths(self.files[row] for row in rows)
        return ImageSet(self.source[rows], labels, self.classes, files, self.numbers[rows])


@dataclass(frozen=True)
class Split:
    """A data set, divided into training and test images.

    Attributes:
        name: as `--dataset` names it.
        train: the training images.
        test: the test images; None for a folder without any.
        notes: lines for the log.
    """

    name: str
    train: ImageSet
    test: Optional[ImageSet]
    notes: tuple[str, ...] = ()


def limit(image_set: ImageSet, count: int, seed: int) -> ImageSet:
    """A random subset of `count` images, in order of index; all of them if there are no more than that.

    The choice depends on the seed and the number of images alone. A smaller count gives a subset of a larger one.

    Args:
        seed: at least 0.
    """
    if count >= len(image_set):
        return image_set
    # RandomState: numpy promises the same stream in all its versions
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return image_set.subset(np.sort(random.permutation(len(image_set))[:count]))


@dataclass(frozen=True)
class Replaced:
    """Files whose names are unchanged and whose contents differ from before.

    Attributes:
        paths: of those found.
        compared: how many were compared.
    """

    paths: tuple[str, ...]
    compared: int

    @property
    def are_other_pictures(self) -> bool:
        """Whether the files are other pictures, since more than half differ; otherwise some of them were edited."""
        return 2 * len(self.paths) > self.compared

    def __str__(self) -> str:
        named = ", ".join(map(one_line, self.paths[:3])) + (", ..." if len(self.paths) > 3 else "")
        return f"{len(self.paths):,} of {self.compared:,} files compared ({named})"


def _even_sample(count: int) -> list[int]:
    return sorted({row * (count - 1) // max(1, min(count, _SAMPLED) - 1) for row in range(min(count, _SAMPLED))})


def _content(path: str) -> int:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(size).encode(), digest_size=4)
            for place in sorted({0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)}):
                file.seek(place)
                digest.update(file.read(_PIECE))
    except OSError:
        return 0
    return int.from_bytes(digest.digest(), "big") >> 1
