"""Fine-grained data sets with published lists of images: Caltech-UCSD Birds-200-2011 (cub200), Stanford Dogs (dogs)."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.image_set import ImageSet, Split
from lib.errors import UserError

_CUB = "CUB_200_2011"
_CUB_LINE = re.compile(r"([0-9]+) +(\S.*)")
_DOGS_LISTS = ("train_list.mat", "test_list.mat")


@dataclass(frozen=True)
class Listed:
    """One image of a published list.

    Attributes:
        path: CLASS/FILE, relative to the folder of the images.
        label: the number of its class in the lists.
        where: its file and line, for messages, e.g. `images.txt, line 3`.
    """

    path: str
    label: int
    where: str


def cub200(root: Path, download: bool) -> Split:
    """Caltech-UCSD Birds-200-2011 in `root`, the published folder CUB_200_2011 or its parent; it cannot be downloaded.

    train_test_split.txt says which images are for training, image_class_labels.txt gives the classes.

    Raises:
        UserError: a list or an image is missing, or the lists contradict themselves or each other.
    """
    folder = _cub_folder(root)
    images = _cub_table(folder / "images.txt")
    labels = _cub_column(folder / "image_class_labels.txt", images)
    uses = _cub_column(folder / "train_test_split.txt", images)
    train: list[Listed] = []
    test: list[Listed] = []
    for number, (path, line) in images.items():
        label, use = labels[number], uses[number]
        if use not in (0, 1):
            raise UserError(
                f"--dataset cub200: {folder / 'train_test_split.txt'}: image {number} has {use}, not 1 (training) or 0 "
                "(test); unpack the data set again"
            )
        (train if use else test).append(Listed(path, label, f"{folder / 'images.txt'}, line {line}"))
    return Split("cub200", *image_sets("cub200", folder / "images", train, test))


def _cub_folder(root: Path) -> Path:
    for folder in (root, root / _CUB):
        if (folder / "images.txt").is_file():
            return folder
    raise UserError(
        f"--dataset cub200: there is no images.txt in {root} or {root / _CUB}; point --data-root at the folder {_CUB} "
        f"of the published archive, or link it: mkdir -p {root.parent} && ln -s /path/to/{_CUB} {root}"
    )


def _cub_table(file: Path) -> dict[int, tuple[str, int]]:
    """Reads a list: for each image's number its value and its line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"--dataset cub200: {file} cannot be read: {reason}; unpack the data set again") from error
    rows: dict[int, tuple[str, int]] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        found = _CUB_LINE.fullmatch(content.strip())
        if found is None:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: {content[:60]!r} is not a number and a value; unpack the data "
                "set again"
            )
        number = int(found[1])
        if number in rows:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: image {number} was on line {rows[number][1]} already; unpack "
                "the data set again"
            )
        rows[number] = (found[2], line)
    return rows


def _cub_column(file: Path, images: dict[int, tuple[str, int]]) -> dict[int, int]:
    """Reads a list with a whole number for each image of images.txt."""
    numbers: dict[int, int] = {}
    for number, (value, line) in _cub_table(file).items():
        if number not in images:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: image {number} is not in images.txt; unpack the data set again"
            )
        if not value.isdecimal():
            raise UserError(
                f"--dataset cub200: {file}, line {line}: {value[:60]!r} is not a whole number; unpack the "
                "data set again"
            )
        numbers[number] = int(value)
    missing = [number for number in images if number not in numbers]
    if missing:
        raise UserError(
            f"--dataset cub200: {file} has no line for image {missing[0]} (images.txt, line {images[missing[0]][1]}); "
            "unpack the data set again"
        )
    return numbers


def dogs(root: Path, download: bool) -> Split:
    """Stanford Dogs in `root`: images in `root`/Images; train_list.mat and test_list.mat in `root`/lists or `root`.

    It cannot be downloaded.

    Raises:
        UserError: a list or an image is missing, or the lists contradict themselves or each other.
    """
    if not (root / "Images").is_dir():
        raise UserError(
            f"--dataset dogs: there is no folder {root / 'Images'}; point --data-root at the folder into which "
            f"images.tar and lists.tar were unpacked, or link it: mkdir -p {root.parent} && ln -s /path/to/it {root}"
        )
    train, test = (_read_dogs_list(_dogs_list(root, name)) for name in _DOGS_LISTS)
    return Split("dogs", *image_sets("dogs", root / "Images", train, test))


def _dogs_list(root: Path, name: str) -> Path:
    for folder in (root / "lists", root):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"--dataset dogs: there is no {name} in {root / 'lists'} or {root}; unpack lists.tar there")


def _read_dogs_list(file: Path) -> list[Listed]:
    """Reads the images of one list, with the published numbers of their classes, from 1."""
    from scipy.io import loadmat  # imported here: only this data set is in MATLAB's format

    try:
        content = loadmat(str(file))
    except Exception as error:  # scipy's parser raises many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--dataset dogs: {file} cannot be read: {reason}; unpack lists.tar again") from error
    for name in ("file_list", "labels"):
        if name not in content:
            raise UserError(f"--dataset dogs: {file} holds no `{name}`; unpack lists.tar again")
    paths, labels = (np.asarray(content[name]).ravel() for name in ("file_list", "labels"))
    if len(paths) != len(labels):
        raise UserError(
            f"--dataset dogs: {file} holds {len(paths)} files and {len(labels)} labels; unpack lists.tar again"
        )
    return [
        _dogs_entry(path, label, f"{file}, entry {place}")
        for place, (path, label) in enumerate(zip(paths, labels), start=1)
    ]


def _dogs_entry(path: object, label: object, where: str) -> Listed:
    """One entry of a list. scipy reads a cell of MATLAB's as an array with one text; the label is a number."""
    texts = np.asarray(path).ravel()
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise UserError(f"--dataset dogs: {where}: the name of the file is not a text; unpack lists.tar again")
    if not isinstance(label, (np.integer, np.floating)) or not np.isfinite(label) or label != np.floor(label):
        raise UserError(f"--dataset dogs: {where}: the label is not a whole number; unpack lists.tar again")
    return Listed(str(texts[0]), int(label), where)


def image_sets(
    dataset: str, folder: Path, train: Sequence[Listed], test: Sequence[Listed]
) -> tuple[ImageSet, ImageSet]:
    """The training and test images in the order of their lists, with classes in the order of their numbers.

    Args:
        dataset: named in messages.
        folder: of the images.

    Raises:
        UserError: a list is empty, an image is listed twice or missing, or classes and class folders do not match.
    """
    for name, images in (("training", train), ("test", test)):
        if not images:
            raise UserError(f"--dataset {dataset}: the lists in {folder.parent} name no {name} image")
    folders = _folder_of_each_class(dataset, [*train, *test])
    _check_files(dataset, folder, [*train, *test])
    numbers = sorted(folders)
    row = {number: place for place, number in enumerate(numbers)}
    classes = tuple(folders[number] for number in numbers)

    def image_set(images: Sequence[Listed]) -> ImageSet:
        labels = np.array([row[image.label] for image in images], dtype=np.int64)
        return ImageSet([os.path.join(folder, image.path) for image in images], labels, classes)

    return image_set(train), image_set(test)


def _folder_of_each_class(dataset: str, images: Sequence[Listed]) -> dict[int, str]:
    """Maps each class number to its folder. Raises a UserError unless it is one folder per number and vice versa."""
    folders: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for image in images:
        folder = os.path.dirname(image.path)
        number = numbers.setdefault(folder, image.label)
        expected = folders.setdefault(image.label, folder)
        if not folder:
            reason = "the image is in no class folder"
        elif number != image.label:
            reason = f"the images in {folder} before it are of class {number}"
        elif expected != folder:
            reason = f"the images of that class before it are in {expected}"
        else:
            continue
        raise UserError(
            f"--dataset {dataset}: {image.where}: {image.path} is listed as class {image.label}, but {reason}; unpack "
            "the data set again"
        )
    return folders


def _check_files(dataset: str, folder: Path, images: Sequence[Listed]) -> None:
    """Raises a UserError if an image is listed twice or its file is missing."""
    seen: dict[str, str] = {}
    for image in images:
        if image.path in seen:
            raise UserError(
                f"--dataset {dataset}: {image.where}: {image.path} was listed before ({seen[image.path]}); unpack the "
                "data set again"
            )
        seen[image.path] = image.where
        if not os.path.isfile(os.path.join(folder, image.path)):
            raise UserError(
                f"--dataset {dataset}: {image.where}: there is no file {folder / image.path}; unpack the data set again"
            )
