"""ILSVRC-2012, the ImageNet of a thousand classes."""

import re
from pathlib import Path
from typing import Optional

from datasets.image_set import ImageSet, Split
from datasets.sources.image_folder import read_folder
from lib.errors import UserError

_CLASSES = 1000
_WNID = re.compile(r"n[0-9]{8}")


def imagenet12(root: Path, download: bool) -> Split:
    """The images in `root`/train and `root`/val, each with a folder for each class, named by its WordNet id.

    Only the folders are read here, no image. There is nothing to download.

    Raises:
        UserError: a folder is missing, holds no images, or is not sorted into the thousand classes.
    """
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise UserError(
                f"--dataset imagenet12: there is no folder {root / name}; point --data-root at the folder that holds "
                f"train/ and val/, or link it: mkdir -p {root.parent} && ln -s /path/to/imagenet {root}"
            )
    notes: list[str] = []
    train = _sorted_into_classes(root / "train", None, notes)
    if len(train.classes) != _CLASSES:
        raise UserError(
            f"--dataset imagenet12: {root / 'train'} holds {len(train.classes)} class folders with images, not "
            f"{_CLASSES}; unpack what is missing, or use --dataset imagefolder for a part of ImageNet"
        )
    val = _sorted_into_classes(root / "val", train.classes, notes)
    return Split("imagenet12", train, val, tuple(notes))


def _sorted_into_classes(folder: Path, known: Optional[tuple[str, ...]], notes: list[str]) -> ImageSet:
    images = read_folder(folder, "imagenet12", known, notes)
    if images.labels is None:
        raise UserError(
            f"--dataset imagenet12: the images lie directly in {folder}, so their classes are not known; move each "
            "into a folder named by the WordNet id of its class, such as n01440764 (for the validation images the "
            "script valprep.sh, known from PyTorch's ImageNet example, does it)"
        )
    strange = [name for name in images.classes if not _WNID.fullmatch(name)]
    if strange:
        raise UserError(
            f"--dataset imagenet12: {folder / strange[0]} is not named by a WordNet id such as n01440764; move it "
            "away, or use --dataset imagefolder for other images"
        )
    return images
