"""Images in folders: DIR/train and DIR/test, with a folder for each class or with none."""

import os
from pathlib import Path
from typing import Optional

import numpy as np

from datasets.image_set import ImageSet
from datasets.normalisation import IMAGENET
from datasets.split import Split
from lib.errors import UserError
from lib.session.folder import SessionFolder

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""Files with these endings, in either case, are images; all others are passed over."""


def imagefolder(root: Path, download: bool) -> Split:
    """The images below `root`, as `read_folders` finds them; there is nothing to download.

    Raises:
        UserError: as `read_folders`.
    """
    train, test = read_folders(root, "imagefolder")
    return Split("imagefolder", train, test, *IMAGENET)


def read_folders(root: Path, dataset: str) -> tuple[ImageSet, Optional[ImageSet]]:
    """The images in `root`/train, and in `root`/test, or else `root`/val, if there is one.

    Each folder in train that holds images, at any depth, is a class; classes and images are in order of their
    paths. Without such folders the images are those directly in train, and have no labels. Names that begin with
    a dot are passed over, and links are followed.

    Args:
        dataset: named in messages.

    Raises:
        UserError: there is no train folder or no image in it or in test, images lie both beside class folders
            and in them, or a class of the test images is not one of train.
    """
    folder = root / "train"
    if not folder.is_dir():
        raise UserError(
            f"--dataset {dataset}: there is no folder {folder}; point --data-root at the folder that holds train/ "
            f"and test/, or link it: mkdir -p {root.parent} && ln -s /path/to/it {root}"
        )
    train = read_folder(folder, dataset, None)
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, read_folder(root / name, dataset, train.classes)
    return train, None


def read_folder(folder: Path, dataset: str, known: Optional[tuple[str, ...]]) -> ImageSet:
    """The images of one folder, as `read_folders` finds them; `known` are the classes allowed, if that is settled.

    Raises:
        UserError: it holds no images, or some both beside class folders and in them, or a class that is not known.
    """
    try:
        loose, classes = _scan(folder)
    except OSError as error:
        raise UserError(f"--dataset {dataset}: {error.filename} cannot be read: {error.strerror}") from error
    if not loose and not classes:
        raise UserError(
            f"--dataset {dataset}: {folder} holds no images (files ending in {', '.join(SUFFIXES)}); put a folder "
            "of images for each class there, or images without labels"
        )
    if loose and classes:
        raise UserError(
            f"--dataset {dataset}: {folder} holds class folders ({', '.join(sorted(classes)[:3])}, ...) and images "
            f"beside them ({os.path.basename(loose[0])}, ...); move those images into a class folder or away"
        )
    if not classes:
        return ImageSet(tuple(loose), None, known or ())
    if known == ():  # training images without labels: class folders among the test images mean nothing
        return ImageSet(tuple(path for name in sorted(classes) for path in classes[name]))
    names = tuple(sorted(classes)) if known is None else known
    strange = sorted(set(classes) - set(names))
    if strange:
        raise UserError(
            f"--dataset {dataset}: {folder / strange[0]} is a class that the training images do not have; "
            "remove it or add it to train"
        )
    return _labelled(classes, names)


def _labelled(classes: dict[str, list[str]], names: tuple[str, ...]) -> ImageSet:
    paths = tuple(path for name in names for path in classes.get(name, ()))
    counts = [len(classes.get(name, ())) for name in names]
    return ImageSet(paths, np.repeat(np.arange(len(names), dtype=np.int64), counts), names)


def _scan(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The images directly in a folder, and those below each of its folders that has any."""
    files, folders = _entries(str(folder))
    classes = {}
    for path in folders:
        images = images_below(path, above=str(folder))
        if images:
            classes[os.path.basename(path)] = images
    return [path for path in files if is_image(path)], classes


def images_below(folder: str, above: Optional[str] = None) -> list[str]:
    """The images at any depth, sorted. A folder that links lead to again, `above` included, is read once.

    What lies in the session folder of a run is passed over.
    """
    return list(filter(is_image, files_below(folder, above)[0]))


def files_below(folder: str, above: Optional[str] = None) -> tuple[list[str], list[str]]:
    """As `images_below`, all files but the hidden ones; and the session folders of runs, which are passed over: a run
    draws pictures into its own, and must find the same images when it is gone on with."""
    seen = set() if above is None else {os.path.realpath(above)}
    found: list[str] = []
    sessions: list[str] = []
    pending = [folder]
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        if SessionFolder(Path(here)).is_one:
            sessions.append(here)
            continue
        files, folders = _entries(here)
        found.extend(files)
        pending.extend(reversed(folders))
    return sorted(found), sorted(sessions)


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The sorted paths of the files and of the folders in a folder, without the hidden ones."""
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
    files: list[str] = []
    folders: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry.path):
        if _is_folder(entry):
            folders.append(entry.path)
        elif not _is_pipe_or_device(entry):
            files.append(entry.path)
    return files, folders


def _is_folder(entry: os.DirEntry) -> bool:
    # a link to itself makes entry.is_dir() raise; os.path.isdir answers no
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_pipe_or_device(entry: os.DirEntry) -> bool:
    """Reading these would never end. A link that leads nowhere is taken for a file, which an error will name."""
    if not entry.is_symlink():
        return not entry.is_file()
    return os.path.exists(entry.path) and not os.path.isfile(entry.path)


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image that can be read."""
    return path.lower().endswith(SUFFIXES)
