"""The channel means and standard deviations that images are normalised with, and whose they are."""

from typing import Optional

from lib.config import Options

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Means and standard deviations of red, green and blue, for images in [0, 1]."""

IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10: Statistics = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100: Statistics = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)
SVHN: Statistics = (0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)
DIGITS: Statistics = (0.3054,) * 3, (0.3760,) * 3  # over all pixels of the training images
HALF: Statistics = (0.5,) * 3, (0.5,) * 3

NAMED: dict[str, Statistics] = {
    "imagenet": IMAGENET,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "half": HALF,
}
"""What `--normalise` knows by name. `half` brings [0, 1] to [-1, 1]."""

_OF_DATA_SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN, "digits": DIGITS}


def of_data_set(name: str) -> Statistics:
    """A data set's own; folders of photos have those of ImageNet."""
    return _OF_DATA_SETS.get(name, IMAGENET)


def chosen(options: Options, own: Optional[Statistics] = None) -> Statistics:
    """What the options ask for: `--means` and `--stds` first, then `--normalise`, then the data set's `own`."""
    means, stds = NAMED.get(options.normalise or "") or own or of_data_set(options.dataset)
    return tuple(options.means or means), tuple(options.stds or stds)
