"""CIFAR-10, CIFAR-100 and SVHN, by way of torchvision.

torchvision compares the checksum of every file with its own list before opening it: no pickle of unknown origin is
loaded.
"""

import contextlib
import sys
import tarfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity

from datasets.image_set import ImageSet
from datasets.sources.image_folder import read_folders
from datasets.split import Split
from datasets.transforms.normalisation import CIFAR10, CIFAR100, SVHN
from lib.errors import UserError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100_COUNT = 100

# what torchvision, and what it downloads and unpacks with, may raise
_FAILURES = (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError)

_Files = list[tuple[Path, str]]  # each with its md5


def cifar10(root: Path, download: bool) -> Split:
    """CIFAR-10 in `root`: torchvision's files, or folders train/<class> and test/<class> of images.

    Raises:
        UserError: it is missing, damaged, or in folders that are not its ten classes.
    """
    train, test, notes = _cifar(root, "cifar10", torchvision.datasets.CIFAR10, download)
    if train.classes != CIFAR10_CLASSES:
        raise UserError(
            f"--dataset cifar10: the class folders in {root / 'train'} are {_some(train.classes)}, not the ten of "
            f"CIFAR-10 ({', '.join(CIFAR10_CLASSES)}); for other images use --dataset imagefolder"
        )
    return Split("cifar10", train, test, *CIFAR10, notes)


def cifar100(root: Path, download: bool) -> Split:
    """CIFAR-100 with its 100 fine classes, as `cifar10`.

    Raises:
        UserError: it is missing, damaged, or in folders that are not 100.
    """
    train, test, notes = _cifar(root, "cifar100", torchvision.datasets.CIFAR100, download)
    if len(train.classes) != _CIFAR100_COUNT:
        raise UserError(
            f"--dataset cifar100: {root / 'train'} holds {len(train.classes)} class folders, not {_CIFAR100_COUNT}; "
            "for other images use --dataset imagefolder"
        )
    return Split("cifar100", train, test, *CIFAR100, notes)


def svhn(root: Path, download: bool) -> Split:
    """SVHN, cropped digits, without its extra images: 73,257 to train and 26,032 to test.

    Raises:
        UserError: it is missing or damaged.
    """
    kind = torchvision.datasets.SVHN
    files = [(root / kind.split_list[part][1], kind.split_list[part][2]) for part in ("train", "test")]
    _require("svhn", root, files, download, f"no file {files[0][0].name}")
    loaded = [
        _open("svhn", root, files, download, lambda part=part: kind(str(root), split=part, download=download))
        for part in ("train", "test")
    ]
    train, test = (
        ImageSet(np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), part.labels, tuple("0123456789"))
        for part in loaded
    )
    return Split("svhn", train, test, *SVHN)


def _cifar(root: Path, name: str, kind: Any, download: bool) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    if (root / "train").is_dir() and (root / "test").is_dir():
        return read_folders(root, name)
    folder = root / kind.base_folder
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(folder / file, md5) for file, md5 in listed]
    _require(name, root, files, download, f"neither the files of {kind.base_folder} nor folders train/ and test/")
    # each part looks at its own files only: computing the checksums of both twice would take half a second
    halves = [type(kind.__name__, (kind,), {other: []}) for other in ("test_list", "train_list")]
    loaded = [
        _open(name, root, files, download, lambda half=half, train=train: half(str(root), train, download=download))
        for half, train in zip(halves, (True, False))
    ]
    train, test = (
        ImageSet(np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64), tuple(part.classes))
        for part in loaded
    )
    return train, test, ()


def _require(name: str, root: Path, files: _Files, download: bool, lacking: str) -> None:
    """Raise a UserError if a file is missing and may not be downloaded."""
    missing = [path for path, _ in files if not path.is_file()]
    if not missing or download:
        return
    if len(missing) < len(files):
        lacking = f"no file {missing[0].relative_to(root)}"
    raise UserError(
        f"--dataset {name}: {lacking} in {root}; fetch them with --download, or link yours: "
        f"mkdir -p {root.parent} && ln -s /path/to/{name} {root}"
    )


def _open(name: str, root: Path, files: _Files, download: bool, build: Callable[[], Any]) -> Any:
    """What `build` makes of the files, with its complaints put in our words."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is not for the news of a download
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
            "it and fetch it again with --download, or link a good copy"
        ) from error


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "none"
