"""The data sets by name, and the channel statistics that their images are normalised with.

Adding a data set: a function from (root, download) to a `Split`, in a file of datasets/sources/, and a line in
`DATA_SETS`. This file imports neither PyTorch nor NumPy nor Pillow, so that the options can read the names.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from lib.errors import UserError

if TYPE_CHECKING:
    from datasets.image_set import Split

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Means and standard deviations of red, green and blue, for images in [0, 1]."""

IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10: Statistics = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100: Statistics = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)
SVHN: Statistics = (0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)
DIGITS: Statistics = (0.3054,) * 3, (0.3760,) * 3  # over all pixels of the training images
HALF: Statistics = (0.5,) * 3, (0.5,) * 3

NORMALISATIONS: dict[str, Statistics] = {
    "imagenet": IMAGENET,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "half": HALF,
}
"""The choices of `--normalise`. `half` brings [0, 1] to [-1, 1]."""


class DataSet(NamedTuple):
    """Where a data set is read, `module:function` in datasets/sources/, and what its images are normalised with."""

    source: str
    statistics: Statistics = IMAGENET


DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet("digits:digits", DIGITS),
    "cifar10": DataSet("torchvision_sets:cifar10", CIFAR10),
    "cifar100": DataSet("torchvision_sets:cifar100", CIFAR100),
    "svhn": DataSet("torchvision_sets:svhn", SVHN),
    "imagefolder": DataSet("image_folder:imagefolder"),
    "imagenet12": DataSet("image_folder:imagenet12"),
    "cub200": DataSet("fine_grained:cub200"),
    "dogs": DataSet("fine_grained:dogs"),
    "photos": DataSet("image_folder:photos"),
}
"""The choices of `--dataset`."""


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> "Split":
    """The training and test images of a data set.

    Args:
        name: one of `DATA_SETS`, in either case.
        root: its folder; `data/<name>` in the working directory if None.
        download: whether missing files may be fetched, for data sets that can be downloaded.
        labels: the value of `--labels`: where the labels of `photos` come from; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    name = name.lower()
    if name not in DATA_SETS:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(DATA_SETS)}")
    folder = Path("data", name) if root is None else Path(root).expanduser()
    module, function = DATA_SETS[name].source.split(":")
    split = getattr(importlib.import_module(f"datasets.sources.{module}"), function)(folder, download)
    if labels is None:
        return split
    from datasets.labels import with_labels

    return with_labels(split, folder, labels)


def statistics_of(name: str) -> Statistics:
    """Of a data set's channels; those of ImageNet for names that are not registered."""
    return DATA_SETS[name].statistics if name in DATA_SETS else IMAGENET
