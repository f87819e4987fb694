"""The data sets: images and labels, transforms, and loaders that serve batches."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from lib.config.registry import DATASETS, find
from lib.errors import UserError

if TYPE_CHECKING:
    from datasets.image_set import Split

__all__ = ["PACKAGED", "load"]

PACKAGED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Folders of Debian's packages of data sets (dataset-fashion-mnist), used if data/NAME does not exist."""


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> "Split":
    """The training and test images of a data set.

    Args:
        name: one of `lib.config.registry.DATASETS`, in either case.
        root: its folder; if None, `data/<name>` in the working directory, or else that of a package of the system.
        download: whether missing files may be fetched, for data sets that can be downloaded.
        labels: the value of `--labels`: where the labels of `photos` come from; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    name = name.lower()
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(DATASETS)}")
    folder = Path("data", name) if root is None else Path(root).expanduser()
    packaged = PACKAGED.get(name)
    if root is None and packaged is not None and packaged.is_dir() and not folder.exists():
        folder = packaged
    split: Split = find(DATASETS, name)(folder, download)
    if folder == packaged:
        split = replace(split, notes=(*split.notes, f"read from {packaged}, the system's package"))
    if labels is None:
        return split
    from datasets.labels import with_labels  # here: it imports NumPy and Pillow, which `import datasets` does not need

    return with_labels(split, folder, labels)
