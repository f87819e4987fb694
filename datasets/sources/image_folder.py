"""Images in folders: DIR/train and DIR/test, with a folder for each class or with none."""

import os
from pathlib import Path
from typing import Optional

import numpy as np

from datasets.files.found_files import ENDINGS, Found, entries, look_through, sort_files, unlike_text
from datasets.files.paths import same_name
from datasets.image_set import ImageSet
from datasets.split import Split
from datasets.transforms.normalisation import IMAGENET
from lib.errors import UserError, one_line

_HELD_OUT = ("test", "val", "valid", "validation")
"""Names of the folder of test images; the first that is there is used."""

_NAMED = 6  # folders that a message names


def imagefolder(root: Path, download: bool) -> Split:
    """The images below `root`, as `read_folders` finds them; there is nothing to download.

    Raises:
        UserError: as `read_folders`.
    """
    train, test, notes = read_folders(root, "imagefolder")
    return Split("imagefolder", train, test, *IMAGENET, notes)


def read_folders(root: Path, dataset: str) -> tuple[ImageSet, Optional[ImageSet], tuple[str, ...]]:
    """The images in `root`/train, and in `root`/test, or else val, valid or validation, if there is one; and notes.

    Each folder in train that holds images, at any depth, is a class; classes and images are in order of their
    paths. Without such folders the images are those directly in train, and have no labels. Names that begin with
    a dot are passed over, and so are folders that systems make, and files that are no pictures; the notes count them.
    Links are followed. Names of classes are compared by what they say, not by their bytes (`same_name`).

    Args:
        dataset: named in messages.

    Raises:
        UserError: there is no train folder or no image in it or in test, images lie both beside class folders
            and in them, a class of the test images is not one of train, or a class folder holds files and no image.
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
    except OSError:  # what cannot be listed may be entered all the same
        return []


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{one_line(name)}/" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} more folders" if len(names) > _NAMED else "")


def read_folder(
    folder: Path, dataset: str, known: Optional[tuple[str, ...]], notes: Optional[list[str]] = None
) -> ImageSet:
    """The images of one folder, as `read_folders` finds them.

    Args:
        known: the classes allowed, if that is settled.
        notes: a list to which lines about what was passed over are added.

    Raises:
        UserError: it holds no images, or some both beside class folders and in them, or a class that is not known, or
            a class folder without an image.
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
        notes.extend([*lines, *found.passed_over(f" in {folder.name}")])
    if not classes:
        return ImageSet(tuple(loose), None, known or ())
    if known == ():  # training images without labels: class folders among the test images mean nothing
        return ImageSet(tuple(path for name in sorted(classes) for path in classes[name]))
    names = tuple(sorted(classes)) if known is None else known
    called = {same_name(name): name for name in names}
    strange = sorted(name for name in classes if same_name(name) not in called)
    if strange:
        raise UserError(
            f"--dataset {dataset}: {folder / strange[0]} is a class that the training images do not have; "
            "remove it or add it to train"
        )
    return _labelled({called[same_name(name)]: paths for name, paths in classes.items()}, names)


def _labelled(classes: dict[str, list[str]], names: tuple[str, ...]) -> ImageSet:
    paths = tuple(path for name in names for path in classes.get(name, ()))
    counts = [len(classes.get(name, ())) for name in names]
    return ImageSet(paths, np.repeat(np.arange(len(names), dtype=np.int64), counts), names)


def _scan(folder: Path, dataset: str) -> tuple[list[str], dict[str, list[str]], Found, list[str]]:
    """The images directly in a folder, those below each of its folders that has any, all that was found, and notes."""
    total, lines = Found(), []
    files, folders = entries(str(folder), total)
    sort_files(files, total)
    loose = list(total.pictures)
    classes: dict[str, list[str]] = {}
    empty: list[str] = []
    folder_of: dict[str, str] = {}
    for path in folders:
        found = look_through(path, above=(str(folder),))
        name = os.path.basename(path)
        if found.pictures:
            first = folder_of.setdefault(same_name(name), name)
            if first != name:
                lines.append(f"two folders in {folder.name} are called {one_line(name)}, in other bytes: one class")
            classes.setdefault(first, []).extend(found.pictures)
        else:
            _check_lost(path, dataset, found)
            if not found.sessions:
                empty.append(name)
        total.add(found)
    if empty:
        lines.append(f"no classes, for they hold no pictures: {_listed(empty)} in {folder.name}")
    return loose, classes, total, lines


def _check_lost(folder: str, dataset: str, found: Found) -> None:
    """Raise a UserError if a class folder has lost all its files: accuracies would be of the other classes."""
    if unlike_text(found.others) is not None or found.closed:
        raise UserError(
            f"--dataset {dataset}: {one_line(folder)} is a class folder without a picture that can be read here"
            f"{found.holdings()}; convert its files to JPEG (for HEIC, pip install pillow-heif will do), or move the "
            "folder away"
        )
