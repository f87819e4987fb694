"""Data sets of image files: imagefolder (train/ and test/, a folder for each class) and photos (any folder)."""

import os
from pathlib import Path
from typing import Optional

import numpy as np

from datasets.files.found_files import (
    ENDINGS,
    Found,
    canonical_name,
    entries,
    first_possible_picture,
    scan_folder,
    sort_files,
)
from datasets.image_set import ImageSet, Split
from lib.errors import UserError, one_line

_HELD_OUT = ("test", "val", "valid", "validation")
"""Names of the folder of test images; the first that exists is used."""

_NAMED = 6  # folders that a message names


def imagefolder(root: Path, download: bool) -> Split:
    """The data set imagefolder: the images below `root`, as `read_folders` finds them; nothing can be downloaded.

    Raises:
        UserError: as `read_folders`.
    """
    train, test, notes = read_folders(root, "imagefolder")
    return Split("imagefolder", train, test, notes)


def photos(root: Path, download: bool) -> Split:
    """The data set photos: every picture below `root`, at any depth, sorted by path. All are training images.

    Names that begin with a dot, session folders, folders that operating systems make, and files without the suffix of a
    picture are skipped; the notes count all but the first. Links are followed.

    Raises:
        UserError: the folder does not exist, cannot be read, or holds no picture.
    """
    if not root.is_dir():
        raise UserError(f"--dataset photos: there is no folder {root}; point --data-root at your pictures")
    found = find_images(str(root), f"--dataset photos: {root}")
    return Split("photos", ImageSet(found.pictures), None, tuple(found.skipped()))


def read_folders(root: Path, dataset: str) -> tuple[ImageSet, Optional[ImageSet], tuple[str, ...]]:
    """Reads training images from `root`/train and test images from `root`/test, val, valid or validation.

    Each folder directly in train that holds images, at any depth, is a class; classes and images are sorted by path.
    Without class folders the images directly in train are read, without labels. The same files are skipped as in
    `photos`. Links are followed. Names of classes are compared by `canonical_name`, not by their bytes.

    Args:
        dataset: named in messages.

    Returns:
        training images, test images (None without such a folder), and notes for the log.

    Raises:
        UserError: there is no train folder, no image in it or in the test folder, images lie both in class folders and
            beside them, a test class is not a training class, or a class folder holds unreadable images alone.
    """
    folder = root / "train"
    beside = _folders_in(root)
    if not folder.is_dir():
        holds = f" ({root} holds {_listed(beside)})" if beside else ""
        raise UserError(
            f"--dataset {dataset}: there is no folder {folder}{holds}; point --data-root at the folder that holds "
            f"train/ and test/, or link it: mkdir -p {root.parent} && ln -s /path/to/it {root}"
        )
    notes: list[str] = []
    train = read_folder(folder, dataset, None, notes)
    test, name = None, next((name for name in _HELD_OUT if (root / name).is_dir()), None)
    if name is not None:
        test = read_folder(root / name, dataset, train.classes, notes)
        if name != "test":
            notes.append(f"test images: those in {name}/")
    unused = [other for other in beside if other not in ("train", name)]
    if unused:
        notes.append(f"not used: {_listed(unused)} beside train/")
    return train, test, tuple(notes)


def _folders_in(root: Path) -> list[str]:
    try:
        return [os.path.basename(path) for path in entries(str(root), Found())[1]]
    except OSError:  # files in a folder that cannot be listed may be readable
        return []


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{one_line(name)}/" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} more folders" if len(names) > _NAMED else "")


def read_folder(
    folder: Path, dataset: str, known: Optional[tuple[str, ...]], notes: Optional[list[str]] = None
) -> ImageSet:
    """Reads the images of one folder, as `read_folders` does.

    Args:
        known: the classes of the training images; None: those found here.
        notes: a list to which lines about skipped files are added.

    Raises:
        UserError: the folder cannot be read, holds no image, holds images both in class folders and beside them, holds
            a class that is not in `known`, or a class folder holds unreadable images alone.
    """
    try:
        loose, classes, found, lines = _scan(folder, dataset)
    except OSError as error:
        raise UserError(f"--dataset {dataset}: {error.filename} cannot be read: {error.strerror}") from error
    if not loose and not classes:
        raise UserError(
            f"--dataset {dataset}: {folder} holds no images ({ENDINGS}){found.holdings()}; put a folder of images for "
            "each class there, or images without labels"
        )
    if loose and classes:
        raise UserError(
            f"--dataset {dataset}: {folder} holds class folders ({', '.join(sorted(classes)[:3])}, ...) and images "
            f"beside them ({os.path.basename(loose[0])}, ...); move those images into a class folder or away"
        )
    if notes is not None:
        notes.extend([*lines, *found.skipped(f" in {folder.name}")])
    if not classes:
        return ImageSet(tuple(loose), None, known or ())
    if known == ():  # without training labels, class folders of test images are ignored
        return ImageSet(tuple(path for name in sorted(classes) for path in classes[name]))
    names = tuple(sorted(classes)) if known is None else known
    called = {canonical_name(name): name for name in names}
    strange = sorted(name for name in classes if canonical_name(name) not in called)
    if strange:
        raise UserError(
            f"--dataset {dataset}: {folder / strange[0]} is a class that the training images do not have; "
            "remove it or add it to train"
        )
    return _labelled({called[canonical_name(name)]: paths for name, paths in classes.items()}, names)


def _labelled(classes: dict[str, list[str]], names: tuple[str, ...]) -> ImageSet:
    paths = tuple(path for name in names for path in classes.get(name, ()))
    counts = [len(classes.get(name, ())) for name in names]
    return ImageSet(paths, np.repeat(np.arange(len(names), dtype=np.int64), counts), names)


def _scan(folder: Path, dataset: str) -> tuple[list[str], dict[str, list[str]], Found, list[str]]:
    """The images directly in a folder, those of each class folder by its name, all files found, and notes."""
    total = Found()
    lines: list[str] = []
    files, folders = entries(str(folder), total)
    sort_files(files, total)
    loose = list(total.pictures)
    classes: dict[str, list[str]] = {}
    empty: list[str] = []
    folder_of: dict[str, str] = {}
    for path in folders:
        found = scan_folder(path, above=(str(folder),))
        name = os.path.basename(path)
        if found.pictures:
            first = folder_of.setdefault(canonical_name(name), name)
            if first != name:
                lines.append(f"two folders in {folder.name} are called {one_line(name)} in different bytes: one class")
            classes.setdefault(first, []).extend(found.pictures)
        else:
            _check_not_unreadable(path, dataset, found)
            if not found.sessions:
                empty.append(name)
        total.add(found)
    if empty:
        lines.append(f"not classes, since they hold no pictures: {_listed(empty)} in {folder.name}")
    return loose, classes, total, lines


def _check_not_unreadable(folder: str, dataset: str, found: Found) -> None:
    """Raises a UserError if no file of a class folder can be read: the class would be missing from all accuracies."""
    if first_possible_picture(found.others) is not None or found.closed:
        raise UserError(
            f"--dataset {dataset}: {one_line(folder)} is a class folder without a picture that can be read here"
            f"{found.holdings()}; convert its files to JPEG (or for HEIC: pip install pillow-heif), or move the "
            "folder away"
        )


def find_images(folder: str, subject: str) -> Found:
    """The result of `scan_folder`, with at least one picture.

    Args:
        subject: how an error message begins.

    Raises:
        UserError: the folder cannot be read or holds no picture.
    """
    try:
        found = scan_folder(folder)
    except OSError as error:
        raise UserError(f"{subject}: {error.filename} cannot be read: {error.strerror}") from error
    if not found.pictures:
        raise UserError(f"{subject} holds no pictures ({ENDINGS}){found.holdings()}")
    return found
