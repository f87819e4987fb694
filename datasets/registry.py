"""The data sets by name. A new one is a function from (root, download) to a Split, and a line in SOURCES."""

from collections.abc import Callable
from pathlib import Path
from typing import Optional

from datasets.sources.cub200 import cub200
from datasets.sources.digits import digits
from datasets.sources.dogs import dogs
from datasets.sources.image_folder import imagefolder
from datasets.sources.imagenet12 import imagenet12
from datasets.sources.labels import with_labels
from datasets.sources.photos import photos
from datasets.sources.torchvision_sets import cifar10, cifar100, svhn
from datasets.split import Split
from lib.errors import UserError

SOURCES: dict[str, Callable[[Path, bool], Split]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "digits": digits,
    "imagefolder": imagefolder,
    "imagenet12": imagenet12,
    "cub200": cub200,
    "dogs": dogs,
    "photos": photos,
}


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> Split:
    """A data set.

    Args:
        name: one of `SOURCES`, in either case.
        root: its folder; `data/<name>` in the working directory if None.
        download: whether what is missing may be fetched, where the data set can be.
        labels: where the labels of `photos` come from, as `--labels`; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    source = SOURCES.get(name.lower())
    if source is None:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(SOURCES)}")
    folder = Path("data", name.lower()) if root is None else Path(root).expanduser()
    split = source(folder, download)
    return split if labels is None else with_labels(split, folder, labels)
