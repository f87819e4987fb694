"""Caltech-UCSD Birds-200-2011."""

import re
from pathlib import Path

from datasets.sources.listed_images import Listed, image_sets
from datasets.split import Split
from datasets.transforms.normalisation import IMAGENET
from lib.errors import UserError

FOLDER = "CUB_200_2011"
_LINE = re.compile(r"([0-9]+) +(\S.*)")


def cub200(root: Path, download: bool) -> Split:
    """The birds in `root`, which is the folder CUB_200_2011 as published, or the one that holds it.

    Which images are for training is read from train_test_split.txt, the classes from image_class_labels.txt. There
    is nothing to download.

    Raises:
        UserError: a list or an image is missing, or the lists contradict themselves or each other.
    """
    folder = _folder(root)
    images = _table(folder / "images.txt")
    labels = _column(folder / "image_class_labels.txt", images)
    uses = _column(folder / "train_test_split.txt", images)
    train, test = [], []
    for number, (path, line) in images.items():
        label, use = labels[number], uses[number]
        if use not in (0, 1):
            raise UserError(
                f"--dataset cub200: {folder / 'train_test_split.txt'}: image {number} has {use}, not 1 (training) or 0 "
                "(test); unpack the data set anew"
            )
        (train if use else test).append(Listed(path, label, f"{folder / 'images.txt'}, line {line}"))
    return Split("cub200", *image_sets("cub200", folder / "images", train, test), *IMAGENET)


def _folder(root: Path) -> Path:
    for folder in (root, root / FOLDER):
        if (folder / "images.txt").is_file():
            return folder
    raise UserError(
        f"--dataset cub200: there is no images.txt in {root} or {root / FOLDER}; point --data-root at the folder "
        f"{FOLDER} of the published archive, or link it: mkdir -p {root.parent} && ln -s /path/to/{FOLDER} {root}"
    )


def _table(file: Path) -> dict[int, tuple[str, int]]:
    """What stands behind each image's number in a list, and on which line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"--dataset cub200: {file} cannot be read: {reason}; unpack the data set anew") from error
    rows: dict[int, tuple[str, int]] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        found = _LINE.fullmatch(content.strip())
        if found is None:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: {content[:60]!r} is not a number and a value; unpack the data "
                "set anew"
            )
        number = int(found[1])
        if number in rows:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: image {number} was on line {rows[number][1]} already; unpack "
                "the data set anew"
            )
        rows[number] = (found[2], line)
    return rows


def _column(file: Path, images: dict[int, tuple[str, int]]) -> dict[int, int]:
    """A number for each image of images.txt, from a list that has the same images."""
    numbers: dict[int, int] = {}
    for number, (value, line) in _table(file).items():
        if number not in images:
            raise UserError(
                f"--dataset cub200: {file}, line {line}: image {number} is not in images.txt; unpack the data set anew"
            )
        if not value.isdecimal():
            raise UserError(
                f"--dataset cub200: {file}, line {line}: {value[:60]!r} is not a whole number; unpack the data set anew"
            )
        numbers[number] = int(value)
    missing = [number for number in images if number not in numbers]
    if missing:
        raise UserError(
            f"--dataset cub200: {file} has no line for image {missing[0]} (images.txt, line {images[missing[0]][1]}); "
            "unpack the data set anew"
        )
    return numbers
