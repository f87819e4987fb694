"""Stanford Dogs, 120 breeds."""

from pathlib import Path

import numpy as np

from datasets.sources.listed_images import Listed, image_sets
from datasets.split import Split
from datasets.transforms.normalisation import IMAGENET
from lib.errors import UserError

_LISTS = ("train_list.mat", "test_list.mat")


def dogs(root: Path, download: bool) -> Split:
    """The dogs in `root`/Images, by the published lists train_list.mat and test_list.mat.

    The lists lie in `root`/lists or in `root`. There is nothing to download.

    Raises:
        UserError: a list or an image is missing, or the lists contradict themselves or each other.
    """
    if not (root / "Images").is_dir():
        raise UserError(
            f"--dataset dogs: there is no folder {root / 'Images'}; point --data-root at the folder into which "
            f"images.tar and lists.tar were unpacked, or link it: mkdir -p {root.parent} && ln -s /path/to/it {root}"
        )
    train, test = (_read(_find(root, name)) for name in _LISTS)
    return Split("dogs", *image_sets("dogs", root / "Images", train, test), *IMAGENET)


def _find(root: Path, name: str) -> Path:
    for folder in (root / "lists", root):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"--dataset dogs: there is no {name} in {root / 'lists'} or {root}; unpack lists.tar there")


def _read(file: Path) -> list[Listed]:
    """The images of one list, with the numbers of their classes as published, from 1."""
    from scipy.io import loadmat  # imported here: only this data set is in MATLAB's format

    try:
        content = loadmat(str(file))
    except Exception as error:  # scipy raises what its parser happens to stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--dataset dogs: {file} cannot be read: {reason}; unpack lists.tar anew") from error
    for name in ("file_list", "labels"):
        if name not in content:
            raise UserError(f"--dataset dogs: {file} holds no `{name}`; unpack lists.tar anew")
    paths, labels = (np.asarray(content[name]).ravel() for name in ("file_list", "labels"))
    if len(paths) != len(labels):
        raise UserError(
            f"--dataset dogs: {file} holds {len(paths)} files and {len(labels)} labels; unpack lists.tar anew"
        )
    return [
        _listed(path, label, f"{file}, entry {place}")
        for place, (path, label) in enumerate(zip(paths, labels), start=1)
    ]


def _listed(path: object, label: object, where: str) -> Listed:
    """One entry: an array of one text, as MATLAB's cells are read, and a number."""
    texts = np.asarray(path).ravel()
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise UserError(f"--dataset dogs: {where}: the name of the file is not a text; unpack lists.tar anew")
    if not isinstance(label, (np.integer, np.floating)) or not np.isfinite(label) or label != np.floor(label):
        raise UserError(f"--dataset dogs: {where}: the label is not a whole number; unpack lists.tar anew")
    return Listed(str(texts[0]), int(label), where)
