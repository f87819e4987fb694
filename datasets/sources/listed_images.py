"""Images of which lists say what they show and what they are for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.image_set import ImageSet
from lib.errors import UserError


@dataclass(frozen=True)
class Listed:
    """One image of a list.

    Attributes:
        path: below the folder of the images, CLASS/FILE.
        label: the number of its class in the lists.
        where: the place in the lists, for messages, e.g. `images.txt, line 3`.
    """

    path: str
    label: int
    where: str


def image_sets(
    dataset: str, folder: Path, train: Sequence[Listed], test: Sequence[Listed]
) -> tuple[ImageSet, ImageSet]:
    """Training and test images in the order of their lists; classes in the order of their numbers.

    Args:
        dataset: named in messages.
        folder: of the images.

    Raises:
        UserError: a list is empty, an image is listed twice or is not there, or the numbers of the classes do not go
            with the folders.
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
    """The name of its folder for each number of a class: there must be one folder a number, one number a folder."""
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
            "the data set anew"
        )
    return folders


def _check_files(dataset: str, folder: Path, images: Sequence[Listed]) -> None:
    seen: dict[str, str] = {}
    for image in images:
        if image.path in seen:
            raise UserError(
                f"--dataset {dataset}: {image.where}: {image.path} was listed before ({seen[image.path]}); unpack the "
                "data set anew"
            )
        seen[image.path] = image.where
        if not os.path.isfile(os.path.join(folder, image.path)):
            raise UserError(
                f"--dataset {dataset}: {image.where}: there is no file {folder / image.path}; unpack the data set anew"
            )
