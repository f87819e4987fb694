"""Data sets, networks and protocols by name; options read their choices here. Adding one takes a file and a line here.

A line names what `find` imports, so that `--help` loads neither PyTorch nor a data set.
"""

from typing import Any

DATASETS = {
    "digits": "datasets.sources.digits:digits",
    "cifar10": "datasets.sources.torchvision_sets:cifar10",
    "cifar100": "datasets.sources.torchvision_sets:cifar100",
    "svhn": "datasets.sources.torchvision_sets:svhn",
    "mnist": "datasets.sources.torchvision_sets:mnist",
    "fashion-mnist": "datasets.sources.torchvision_sets:fashion_mnist",
    "imagefolder": "datasets.sources.image_folder:imagefolder",
    "imagenet12": "datasets.sources.imagenet12:imagenet12",
    "cub200": "datasets.sources.fine_grained:cub200",
    "dogs": "datasets.sources.fine_grained:dogs",
    "photos": "datasets.sources.image_folder:photos",
}
"""Functions from (root: Path, download: bool) to a `datasets.image_set.Split`."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Means and standard deviations of red, green and blue, for images in [0, 1]."""

NORMALISATIONS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)),
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "fashion-mnist": ((0.2860,) * 3, (0.3530,) * 3),
    "digits": ((0.3054,) * 3, (0.3760,) * 3),  # over all pixels of the training images
    "half": ((0.5,) * 3, (0.5,) * 3),  # brings [0, 1] to [-1, 1]
}
"""Statistics by which images are normalised. A data set has those of its name, or else those of ImageNet."""

NETWORKS = {
    "resnet18": "models.resnet:resnet18",
    "resnet34": "models.resnet:resnet34",
    "resnet50": "models.resnet:resnet50",
    "resnet101": "models.resnet:resnet101",
    "resnet152": "models.resnet:resnet152",
    "alexnet": "models.alexnet:AlexNet",
    "convnet": "models.convnet:ConvNet",
    "whitenet": "models.whitenet:WhiteNet",
    "whitenet-wide": "models.whitenet:WhiteNetWide",
}
"""Functions from (low_dim: int, small_stem: bool) to a network as `models.build` describes it."""

PROTOCOLS = {
    "knn": "lib.evaluation.knn:KNN",
    "nn": "lib.evaluation.knn:KNN",
    "linear": "lib.evaluation.linear:Linear",
    "cluster": "lib.evaluation.cluster:Cluster",
}
"""Subclasses of `lib.evaluation.evaluator.Protocol`."""


def find(registry: dict[str, str], name: str) -> Any:
    """Import what a line of a registry names.

    Raises:
        KeyError: the registry has no such name.
    """
    module, _, attribute = registry[name].partition(":")
    # not importlib.import_module: `and_discovery` has `import` find the packages of this project
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def statistics_of(dataset: str) -> Statistics:
    """The statistics by which the images of a data set are normalised, unless an option overrides them."""
    return NORMALISATIONS.get(dataset, NORMALISATIONS["imagenet"])
