"""Every data set, network and protocol by name. Another one is one file and one line here, where options read choices.

A line names what is imported when the name is asked for, so that `--help` loads neither PyTorch nor a data set.
"""

from typing import Any

DATASETS = {
    "digits": "datasets.sources.digits:digits",
    "cifar10": "datasets.sources.torchvision_sets:cifar10",
    "cifar100": "datasets.sources.torchvision_sets:cifar100",
    "svhn": "datasets.sources.torchvision_sets:svhn",
    "imagefolder": "datasets.sources.image_folder:imagefolder",
    "imagenet12": "datasets.sources.imagenet12:imagenet12",
    "cub200": "datasets.sources.cub200:cub200",
    "dogs": "datasets.sources.dogs:dogs",
    "photos": "datasets.sources.photos:photos",
}
"""Functions from (root: Path, download: bool) to a `datasets.Split`."""

NETWORKS = {
    "resnet18": "models.resnet:resnet18",
    "resnet34": "models.resnet:resnet34",
    "resnet50": "models.resnet:resnet50",
    "resnet101": "models.resnet:resnet101",
    "resnet152": "models.resnet:resnet152",
    "alexnet": "models.alexnet:AlexNet",
    "convnet": "models.convnet:ConvNet",
    "whitenet": "models.whitenet:WhiteNet",
}
"""Functions from (low_dim: int, small_stem: bool) to a network as `models.build` describes it."""

PROTOCOLS = {
    "knn": "lib.evaluation.voting:Voting",
    "nn": "lib.evaluation.voting:Voting",
    "linear": "lib.evaluation.linear:Linear",
    "cluster": "lib.evaluation.cluster:Cluster",
}
"""Subclasses of `lib.evaluation.protocol.Protocol`."""


def find(registry: dict[str, str], name: str) -> Any:
    """What a line of a registry names, imported.

    Raises:
        KeyError: the registry has no such name.
    """
    module, _, attribute = registry[name].partition(":")
    # not importlib.import_module: `and_discovery` has `import` find the packages of this project
    return getattr(__import__(module, fromlist=[attribute]), attribute)
