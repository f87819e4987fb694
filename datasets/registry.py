"""The data sets by name. A new one is a function from (root, download) to a Split, and a line in SOURCES."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from datasets.sources.cub200 import cub200
from datasets.sources.digits import digits
from datasets.sources.dogs import dogs
from datasets.sources.image_folder import imagefolder
from datasets.sources.imagenet12 import imagenet12
from datasets.sources.labels import with_labels
from datasets.sources.photos import photos
from datasets.sources.torchvision_sets import cifar10, cifar100, fashion_mnist, mnist, svhn
from datasets.split import Split
from lib.errors import UserError

SOURCES: dict[str, Callable[[Path, bool], Split]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "digits": digits,
    "imagefolder": imagefolder,
    "imagenet12": imagenet12,
    "cub200": cub200,
    "dogs": dogs,
    "photos": photos,
}
PACKAGED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's packages put a data set (dataset-fashion-mnist), looked for where data/NAME does not exist."""


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> Split:
    """A data set.

    Args:
        name: one of `SOURCES`, in either case.
        root: its folder; if None, `data/<name>` in the working directory, or else that of a package of the system.
        download: whether what is missing may be fetched, where the data set can be.
        labels: where the labels of `photos` come from, as `--labels`; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    source = SOURCES.get(name.lower())
    if source is None:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(SOURCES)}")
    folder = Path("data", name.lower()) if root is None else Path(root).expanduser()
    packaged = PACKAGED.get(name.lower())
    if root is None and packaged is not None and packaged.is_dir() and not folder.exists():
        folder = packaged
    split = source(folder, download)
    if folder == packaged:
        split = replace(split, notes=(*split.notes, f"read from {packaged}, the system's package"))
    return split if labels is None else with_labels(split, folder, labels)
