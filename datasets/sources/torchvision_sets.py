"""CIFAR-10, CIFAR-100, SVHN, MNIST and Fashion-MNIST, read or downloaded by torchvision.

torchvision compares the checksum of every file of the first three with its own list before it opens the file, so no
pickle of unknown origin is loaded. The MNIST sets are plain arrays, which packages often recompress: their headers
are checked instead of checksums.
"""

import contextlib
import gzip
import math
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity

from datasets.image_set import ImageSet, Split
from datasets.sources.image_folder import read_folders
from lib.errors import UserError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100_COUNT = 100
_IDX_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))

# what torchvision may raise when it downloads, unpacks and reads
_FAILURES = (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError)

_Files = list[tuple[Path, str]]  # each with its md5


def cifar10(root: Path, download: bool) -> Split:
    """CIFAR-10 in `root`: torchvision's files, or folders train/<class> and test/<class> of images.

    Raises:
        UserError: the data set is missing or damaged, or its class folders are not the ten of CIFAR-10.
    """
    train, test, notes = _cifar(root, "cifar10", torchvision.datasets.CIFAR10, download)
    if train.classes != CIFAR10_CLASSES:
        raise UserError(
            f"--dataset cifar10: the class folders in {root / 'train'} are {_some(train.classes)}, not the ten of "
            f"CIFAR-10 ({', '.join(CIFAR10_CLASSES)}); for other images use --dataset imagefolder"
        )
    return Split("cifar10", train, test, notes)


def cifar100(root: Path, download: bool) -> Split:
    """CIFAR-100 in `root` with its 100 fine classes; files or folders as for `cifar10`.

    Raises:
        UserError: the data set is missing or damaged, or has not 100 class folders.
    """
    train, test, notes = _cifar(root, "cifar100", torchvision.datasets.CIFAR100, download)
    if len(train.classes) != _CIFAR100_COUNT:
        raise UserError(
            f"--dataset cifar100: {root / 'train'} holds {len(train.classes)} class folders, not {_CIFAR100_COUNT}; "
            "for other images use --dataset imagefolder"
        )
    return Split("cifar100", train, test, notes)


def svhn(root: Path, download: bool) -> Split:
    """SVHN (cropped digits) without its extra images: 73,257 training and 26,032 test images.

    Raises:
        UserError: the data set is missing or damaged.
    """
    kind = torchvision.datasets.SVHN
    files = [(root / kind.split_list[part][1], kind.split_list[part][2]) for part in ("train", "test")]
    _require("svhn", root, files, download, f"no file {files[0][0].name}")
    loaded = [
        _open("svhn", root, files, download, partial(kind, str(root), split=part, download=download))
        for part in ("train", "test")
    ]
    train, test = (
        ImageSet(np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), part.labels, tuple("0123456789"))
        for part in loaded
    )
    return Split("svhn", train, test)


def mnist(root: Path, download: bool) -> Split:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, grey, 28 x 28 pixels.

    Raises:
        UserError: the data set is missing or damaged.
    """
    return Split("mnist", *_idx_sets(root, "mnist", torchvision.datasets.MNIST, tuple("0123456789"), download))


def fashion_mnist(root: Path, download: bool) -> Split:
    """Fashion-MNIST: grey images of clothes, as many and as large as those of `mnist`.

    Raises:
        UserError: the data set is missing or damaged.
    """
    kind = torchvision.datasets.FashionMNIST
    return Split("fashion-mnist", *_idx_sets(root, "fashion-mnist", kind, tuple(kind.classes), download))


def _idx_sets(root: Path, name: str, kind: Any, classes: tuple[str, ...], download: bool) -> tuple[ImageSet, ImageSet]:
    """Reads training and test images in MNIST's format from files that may be compressed by gzip.

    The files lie in `root`, or in raw/ of a folder named after torchvision's class, where torchvision puts them.
    """
    raw = root / kind.__name__ / "raw"

    def find() -> dict[str, Path]:
        places = [
            (file, folder / f"{file}{end}") for file in _IDX_FILES for folder in (raw, root) for end in (".gz", "")
        ]
        return {file: path for file, path in places if path.is_file()}  # the last of several

    found = find()
    if len(found) < len(_IDX_FILES) and download:
        _open(name, root, [], True, lambda: kind(str(root), download=True))
        found = find()
    missing = [file for file in _IDX_FILES if file not in found]
    if missing:
        raise UserError(_missing(name, f"neither {missing[0]} nor {missing[0]}.gz", root))
    parts = []
    for images, labels in (_IDX_FILES[:2], _IDX_FILES[2:]):
        grey, numbers = _read_idx(name, found[images], 3), _read_idx(name, found[labels], 1)
        if len(grey) != len(numbers):
            raise UserError(f"--dataset {name}: {found[labels]} has {len(numbers)} labels for {len(grey)} images")
        if len(numbers) and numbers.max() >= len(classes):
            raise UserError(
                f"--dataset {name}: {found[labels]} has label {numbers.max()}; {len(classes)} classes are known"
            )
        parts.append(ImageSet(np.repeat(grey[..., None], 3, axis=3), numbers.astype(np.int64), classes))
    return parts[0], parts[1]


def _read_idx(name: str, path: Path, dimensions: int) -> np.ndarray:
    """Reads an idx file of uint8 values, an array of the shape in its header.

    The header is 0, 0, 8 (for uint8), the number of dimensions, and four bytes for each dimension.

    Raises:
        UserError: the file cannot be read or is not an idx file of this many dimensions.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"--dataset {name}: {path} cannot be read: {error}; fetch it again, or link an intact copy"
        ) from error
    head = 4 + 4 * dimensions
    whole = content[:4] == bytes((0, 0, 8, dimensions)) and len(content) >= head
    shape = tuple(np.frombuffer(content[4:head], ">u4").tolist()) if whole else ()
    if not whole or len(content) != head + math.prod(shape):
        raise UserError(
            f"--dataset {name}: {path} is not an idx file of {dimensions} dimension(s), or is cut short; fetch it "
            "again, or link an intact copy"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _cifar(root: Path, name: str, kind: Any, download: bool) -> tuple[ImageSet, Optional[ImageSet], tuple[str, ...]]:
    if (root / "train").is_dir() and (root / "test").is_dir():
        return read_folders(root, name)
    folder = root / kind.base_folder
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(folder / file, md5) for file, md5 in listed]
    _require(name, root, files, download, f"neither the files of {kind.base_folder} nor folders train/ and test/")
    # each half checks only its own files: checksums of all, computed twice, would take half a second more
    halves = [type(kind.__name__, (kind,), {other: []}) for other in ("test_list", "train_list")]
    loaded = [
        _open(name, root, files, download, partial(half, str(root), train, download=download))
        for half, train in zip(halves, (True, False))
    ]
    train, test = (
        ImageSet(np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64), tuple(part.classes))
        for part in loaded
    )
    return train, test, ()


def _require(name: str, root: Path, files: _Files, download: bool, lacking: str) -> None:
    """Raises a UserError if a file is missing and --download is not given."""
    missing = [path for path, _ in files if not path.is_file()]
    if not missing or download:
        return
    if len(missing) < len(files):
        lacking = f"no file {missing[0].relative_to(root)}"
    raise UserError(_missing(name, lacking, root))


def _missing(name: str, lacking: str, root: Path) -> str:
    return (
        f"--dataset {name}: {lacking} in {root}; fetch them with --download, or link yours: "
        f"mkdir -p {root.parent} && ln -s /path/to/{name} {root}"
    )


def _open(name: str, root: Path, files: _Files, download: bool, build: Callable[[], Any]) -> Any:
    """Calls `build`, which reads or downloads the files, and translates its errors to UserErrors."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints the progress of downloads
            return build()
    except _FAILURES as error:
        reason = " ".join(str(error).split())
        if download:
            raise UserError(
                f"--dataset {name}: it could not be fetched into {root}: {reason}; try again, or link a copy: "
                f"mkdir -p {root.parent} && ln -s /path/to/{name} {root}"
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"--dataset {name}: {root} cannot be read: {reason}") from error
        damaged = [path for path, md5 in files if not check_integrity(str(path), md5)]
        raise UserError(
            f"--dataset {name}: {', '.join(map(str, damaged))}: not the original file, its checksum differs; delete "
            "it and fetch it again with --download, or link an intact copy"
        ) from error


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "none"
