"""Every option is a typed field of `Options`, declared with its default, limits and help.

A field added there appears in YAML files, the command line, `--help`, docs, mypy and editors. Nothing here imports
PyTorch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import partial
from typing import Any, Callable, Optional, Union, get_type_hints

from lib.config.option import (
    AUTO,
    Auto,
    Bounds,
    Form,
    completed,
    option,
)
from lib.config.registry import DATASETS, NETWORKS, NORMALISATIONS, PROTOCOLS


def _at_least(low: float) -> Bounds:
    return Bounds(low=low)


_POSITIVE = Bounds(low=0, low_open=True)
_SHARE = Bounds(low=0, high=1)
_SHARE_ABOVE_0 = Bounds(low=0, high=1, low_open=True)
_SHARE_BELOW_1 = Bounds(low=0, high=1, high_open=True)

_FOLDER_NAME = Form(r"(?!\.{1,2}$)[^/\\\x00-\x1f]+", "a plain folder name")
_SAVE_EVERY = Form(r"[1-9][0-9]{0,8}( ?(steps?|s|min|h))?", "a number of steps such as 500, or a time such as 10min")
_NUM_CLUSTERS = Form(r"auto|[1-9][0-9]*", "auto, or a whole number from 1 on")
_THREADS = Form(r"auto|[1-9][0-9]{0,2}", "auto, or a whole number from 1 to 999")
_GPUS = Form(r"auto|cpu|[0-9]+(,[0-9]+)*", "auto, cpu, or indices of GPUs such as 0 or 0,1")

_general = partial(option, group="general")
_data = partial(option, group="data")
_network = partial(option, group="network")
_method = partial(option, group="method")
_optimisation = partial(option, group="optimisation")
_evaluation = partial(option, group="evaluation")
_use = partial(option, group="using a network")
_session = partial(option, group="session")
_devices = partial(option, group="devices")


@dataclass(frozen=True)
class Options:
    """The value of every option as an attribute, e.g. `options.batch_size`; lists are tuples. Immutable.

    `Options()` holds the defaults, `dataclasses.replace` makes a changed copy. Values are not checked here:
    `lib.config.collect` checks what a user wrote.
    """

    # general
    cfgs: tuple[str, ...] = _general(
        (), "YAML files of options; later files override earlier ones", kept=False, path=True
    )
    print_args: bool = _general(False, "print the merged options and where each came from, then stop", kept=False)
    debug_errors: bool = _general(False, "show the traceback of an error", kept=False)

    # data
    dataset: str = _data("cifar10", "the data set", choices=tuple(DATASETS))
    data_root: Optional[str] = _data(None, "folder of the data set; null: data/DATASET", path=True)
    download: bool = _data(False, "fetch the data set if it is not there", kept=False)
    labels: Optional[str] = _data(
        None,
        "photos: labels of the pictures, for reports only. folders: the name of the folder below data_root that a "
        "picture lies in; or a CSV file with two columns, path and label; null: no labels",
        path=True,
    )
    batch_size: int = _data(128, "images in a batch", "images", bounds=_at_least(2))
    workers_num: int = _data(
        2,
        "processes that load images, for each process of the run; none are used where images are augmented on the "
        "device",
        "processes",
        bounds=_at_least(0),
    )
    prefetch: int = _data(
        2, "batches that each DataLoader worker holds ready; fewer take less memory", "batches", bounds=_at_least(1)
    )
    skip_bad_images: bool = _data(
        False,
        "decode every image file once before the run; list those that cannot be decoded and leave them out; without it "
        "such a file ends the run",
    )
    shrink: Optional[int] = _data(
        None,
        "read every image file once and keep its middle square at this many pixels a side, in memory and beside the "
        "folder; null: read the files in every epoch",
        "pixels",
        bounds=_at_least(4),
    )
    resize: Optional[int] = _data(
        None,
        "test images: the shorter side is scaled to this before the centre crop; null: to the size",
        "pixels",
        bounds=_at_least(4),
    )
    size: int = _data(32, "side of the square that the network sees", "pixels", bounds=_at_least(4))
    scale: tuple[float, float] = _data(
        (0.2, 1.0), "share of the image's area that a random crop covers, from and to", bounds=_SHARE_ABOVE_0
    )
    ratio: tuple[float, float] = _data(
        (3 / 4, 4 / 3),
        "width over height of a random crop, from and to; fractions such as 3/4 are read",
        bounds=_POSITIVE,
    )
    colorjitter: tuple[float, float, float, float] = _data(
        (0.4, 0.4, 0.4, 0.4),
        "strength of the random change of brightness, contrast, saturation and hue; hue at most 0.5",
        bounds=_at_least(0),
    )
    random_grayscale: float = _data(0.2, "how often a training image turns grey", "probability", bounds=_SHARE)
    random_horizontal_flip: bool = _data(False, "mirror half of the training images")
    normalise: Optional[str] = _data(
        None,
        "whose channel means and standard deviations are used; most pre-trained models need those of imagenet; "
        "half: 0.5 for all; null: the data set's own",
        choices=tuple(NORMALISATIONS),
    )
    means: Optional[tuple[float, float, float]] = _data(
        None, "mean of each channel, subtracted; overrides --normalise", "intensity, 0 to 1"
    )
    stds: Optional[tuple[float, float, float]] = _data(
        None,
        "standard deviation of each channel, divided by; overrides --normalise",
        "intensity, 0 to 1",
        bounds=_POSITIVE,
    )
    classes: tuple[str, ...] = _data(
        (), "use only the images of these classes, all by name or all by number from 0; none named: all"
    )
    limit_train: Optional[int] = _data(
        None,
        "use only this many training images, a random subset fixed by the seed; null: all",
        "images",
        bounds=_at_least(1),
    )
    limit_test: Optional[int] = _data(
        None,
        "use only this many test images, a random subset fixed by the seed; null: all",
        "images",
        bounds=_at_least(1),
    )
    augment_on: str = _data(
        "auto",
        "augment whole batches on the device, or each image in the DataLoader workers; auto: on the device if"
        " the images are one array that fits (CIFAR, SVHN, digits, folders of small images of one size)",
        choices=("auto", "device", "workers"),
    )

    # network
    network: str = _network(
        "resnet18",
        "the network that turns an image into a feature. convnet is small, for small images and tests; whitenet is "
        "small and begins with filters that whiten patches of the training images, for runs of minutes; whitenet-wide "
        "has twice the channels, for half an hour and more",
        choices=tuple(NETWORKS),
    )
    low_dim: int = _network(128, "length of a feature (D)", bounds=_at_least(1))
    stem: str = _network(
        "auto",
        "first layers for small images or for large ones; auto: small below a size of 64 pixels",
        choices=("auto", "small", "large"),
    )
    init: str = _network(
        "released",
        "how the weights are drawn. released: PyTorch's defaults, as the authors' code has; torchvision: as "
        "torchvision's ResNets, convolutions normal with variance 2 / fan_out",
        choices=("released", "torchvision"),
    )

    # method
    ANs_select_rate: Union[float, Auto] = _method(  # noqa: RUF009 - a field, as the others
        "auto",
        "share of the images that become anchors; each round adds another such share. auto: 1 / (max_round - 1), so "
        "that the last round takes all, as the paper's r/R",
        bounds=_SHARE_ABOVE_0,
    )
    ANs_size: int = _method(1, "neighbours of an anchor, itself not counted (k)", "images", bounds=_at_least(1))
    npc_temperature: float = _method(0.1, "temperature of the softmax over the memory bank (tau)", bounds=_POSITIVE)
    npc_momentum: float = _method(
        0.5,
        "share of its old value that a row of the memory bank keeps when it is updated: 1 - eta, since the paper's eta "
        "weighs the new feature",
        bounds=_SHARE_BELOW_1,
    )
    bank_init: str = _method(
        "random",
        "first rows of the memory bank. random: as the authors' code; features: the untrained network's features of "
        "the training images, preprocessed as test images. With --pretrained or --first-round 1 the rows are always "
        "features",
        choices=("random", "features"),
    )
    max_round: int = _method(5, "rounds, round 0 without anchors included", "rounds", bounds=_at_least(1))
    first_round: int = _method(
        0,
        "round to start with. 1: without round 0; the first anchors are discovered from features of the untrained "
        "network, or of the network of --pretrained",
        "rounds",
        bounds=Bounds(low=0, high=1),
    )
    max_epoch: int = _method(200, "epochs in a round", "epochs", bounds=_at_least(1))
    minutes: Optional[float] = _method(
        None,
        "time for the whole run: chooses max_epoch by the speed of some steps before the first, when a run starts; "
        "null: max_epoch is used as given",
        "minutes",
        bounds=_POSITIVE,
    )
    iter_size: int = _method(1, "batches whose gradients make one optimiser step", "batches", bounds=_at_least(1))

    # optimisation
    optimizer: str = _optimisation("sgd", "the optimiser", choices=("sgd", "adam", "adamw", "rmsprop"))
    base_lr: float = _optimisation(
        0.03, "learning rate at the start of every round; with cosine, of the run", bounds=_POSITIVE
    )
    momentum: float = _optimisation(0.9, "sgd, rmsprop: momentum", bounds=_SHARE_BELOW_1)
    nesterov: bool = _optimisation(True, "sgd: Nesterov momentum")
    dampening: float = _optimisation(0.0, "sgd: dampening of the momentum", bounds=_SHARE)
    weight_decay: float = _optimisation(5e-4, "weight decay, of all parameters", bounds=_at_least(0))
    lr_policy: str = _optimisation(
        "step",
        "how the learning rate falls within a round. step: base_lr * lr_decay_rate ** ((epoch -"
        " lr_decay_offset) // lr_decay_step) from epoch lr_decay_offset on, base_lr before. multistep: times"
        " lr_decay_rate at each epoch of lr_schedule. Epochs count from 0 in each round. cosine: from base_lr to 0"
        " along half a cosine over the whole run",
        choices=("step", "multistep", "cosine", "fixed"),
    )
    lr_warmup: int = _optimisation(
        0,
        "epochs at the start of the run in which the learning rate rises, in equal steps",
        "epochs",
        bounds=_at_least(0),
    )
    lr_decay_offset: int = _optimisation(80, "step: epoch from which the steps count", "epochs", bounds=_at_least(0))
    lr_decay_step: int = _optimisation(40, "step: epochs from one decay to the next", "epochs", bounds=_at_least(1))
    lr_decay_rate: float = _optimisation(0.1, "step, multistep: factor of one decay", bounds=_SHARE_ABOVE_0)
    lr_schedule: tuple[int, ...] = _optimisation(
        (), "multistep: epochs of the decays, increasing", "epochs", bounds=_at_least(1)
    )

    # evaluation
    protocol: tuple[str, ...] = _evaluation(
        ("knn",),
        "how features are evaluated. knn: the nearest training images vote on the class of a test image; nn: the "
        "nearest one decides; linear: a linear classifier on the frozen activations of each stage; cluster: k-means on "
        "the training images, without labels or against them",
        choices=tuple(PROTOCOLS),
    )
    knn_k: int = _evaluation(200, "knn: nearest training images that vote (K)", "images", bounds=_at_least(1))
    knn_sigma: Union[float, Auto] = _evaluation(  # noqa: RUF009 - a field, as the others
        "auto",
        "knn: temperature of the votes (sigma). auto: that of the loss (--npc-temperature), as in the authors' code",
        bounds=_POSITIVE,
    )
    eval_freq: int = _evaluation(
        1,
        "knn, nn: epochs between evaluations while training; the last epoch of a round is always evaluated",
        "epochs",
        bounds=_at_least(1),
    )
    linear_freq: int = _evaluation(
        0,
        "linear: epochs between evaluations while training, the last epoch of each round included; 0: only at the end",
        "epochs",
        bounds=_at_least(0),
    )
    cluster_freq: int = _evaluation(0, "cluster: as --linear-freq", "epochs", bounds=_at_least(0))
    num_clusters: str = _evaluation(
        "auto", "how many clusters (K) a round has; auto: found from the features", "clusters", form=_NUM_CLUSTERS
    )
    features: str = _evaluation(
        "embedding",
        "features of the finished network for clusters, --export, --embed and the report. embedding: its output; "
        "backbone: the input of its last layer (512 numbers for resnet18). kNN always evaluates the output, and these "
        "features too",
        choices=("embedding", "backbone"),
    )
    whiten: bool = _evaluation(
        False, "whiten the features of --features (ZCA) by the mean and covariance of the training images' features"
    )
    test_only: bool = _evaluation(False, "evaluate the network of --resume or --pretrained and stop", kept=False)

    # using a network
    pretrained: Optional[str] = _use(
        None,
        "start from the weights in this file: a checkpoint of this project or of the authors' code, or a state dict",
        path=True,
    )
    export: Optional[str] = _use(
        None,
        "write features, neighbours and clusters of the data set, and the network, into this new folder and stop",
        kept=False,
        path=True,
    )
    embed: Optional[str] = _use(
        None,
        "write features, clusters and nearest training images of all pictures in this folder, and stop",
        kept=False,
        path=True,
    )
    output: Optional[str] = _use(
        None, "--embed: the new folder to write into; null: embedded/NAME in the session", kept=False, path=True
    )
    overwrite: bool = _use(False, "--export, --embed: replace an earlier result at the same place", kept=False)
    neighbours: int = _use(
        10,
        "--export, --embed: how many nearest training images of each image are written",
        "images",
        bounds=_at_least(1),
        kept=False,
    )

    # session
    session: Optional[str] = _session(
        None, "name of the run's folder; null: the time it started", form=_FOLDER_NAME, kept=False
    )
    sess_dir: str = _session(
        "sessions", "folder that holds the sessions; not restored from a checkpoint", kept=False, path=True
    )
    seed: int = _session(0, "seed of everything random", bounds=Bounds(low=0, high=2**32, high_open=True))
    resume: Optional[str] = _session(
        None, "resume a checkpoint file, a session folder, or the `last` session", kept=False, path=True
    )
    restart: bool = _session(
        False, "with --resume: continue in a new session and leave the old one as it is", kept=False
    )
    save_every: Optional[str] = _session(
        "30min",
        "how often to save within an epoch: after a number of steps, or after a time; null: only after epochs",
        "steps, or with s, min, h",
        form=_SAVE_EVERY,
    )
    keep: int = _session(
        2,
        "newest checkpoints to keep, in case one is damaged; the last and the best of each round are kept too",
        "files",
        bounds=_at_least(1),
    )
    debug: bool = _session(False, "write nothing: no session folder, no checkpoints, no logs")
    brief: bool = _session(False, "show only the results of rounds on the terminal")
    display_freq: int = _session(
        20,
        "steps between reads of the loss, each of which waits for the device; also how often progress is shown",
        "steps",
        bounds=_at_least(1),
    )
    log_file: bool = _session(True, "write log.txt into the session folder")
    log_tfb: bool = _session(True, "write TensorBoard files into the session folder")
    tfb_anchors: int = _session(
        24,
        "TensorBoard: anchors shown with their neighbours in each round, a third each of lowest, middle and highest "
        "entropy; 0: none",
        "images",
        bounds=_at_least(0),
    )
    tfb_projector: int = _session(
        2000,
        "TensorBoard: images in the embedding projector, with thumbnails, an even sample of all; 0: no projector",
        "images",
        bounds=Bounds(low=0, high=5000),
    )
    report: bool = _session(
        True, "write report.html into the session folder at the end of each round; takes some seconds each time"
    )
    compare: tuple[str, ...] = _session(
        (),
        "folders of two sessions or more: print their differences and their results, write both as a page, and stop",
        kept=False,
        path=True,
    )
    compare_html: Optional[str] = _session(
        None, "file for the page of --compare; null: a new file in --sess-dir", kept=False, path=True
    )
    report_only: bool = _session(False, "write report.html of the session of --resume again and stop", kept=False)

    # devices
    gpus: str = _devices(
        "auto",
        "device; auto: a GPU for each process if there are any, else the CPU; several indices: a process for each. "
        "--resume does not restore indices, and restores cpu in one process only: pass --gpus again",
        form=_GPUS,
    )
    threads: str = _devices(
        "auto",
        "threads that each process computes with on the CPU. auto: OMP_NUM_THREADS if that is set, else the process's "
        "share of the cores; where other programs are at work the fastest of 1, half and all, timed before the first "
        "epoch. The number is restored from a checkpoint: the last digits of results depend on it",
        form=_THREADS,
    )
    precision: str = _devices(
        "auto",
        "number format of the network; auto: bf16 where the hardware is faster in it, else fp32, in which the paper's "
        "numbers were computed. Features, loss, bank and entropies are float32 in any case",
        choices=("auto", "fp32", "bf16"),
    )
    deterministic: bool = _devices(
        False, "CUDA: the same bits in every run, at some cost in speed; on a CPU they are the same in any case"
    )
    tf32: bool = _devices(False, "CUDA: let float32 convolutions round to TF32")
    compile: bool = _devices(
        False,
        "torch.compile the network (PyTorch 2 and a C++ compiler). Compiling takes half a minute; then a step of "
        "ResNet18 takes 3.0 ms on an H100 instead of 3.5. On a CPU it gained nothing",
    )
    winograd: bool = _devices(
        True,
        "CPU, fp32, PyTorch 2, without --compile: in training, compute wide 3x3 convolutions of large batches by "
        "Winograd's minimal filtering, which is faster, rounds to about 3e-6 of the result instead of 1e-6, and takes "
        "some 400 MiB more for ResNet18 at 32 pixels and 128 images",
    )
    cuda_graph: bool = _devices(
        True, "CUDA: record a training step once and replay it, so that small batches do not wait for kernel launches"
    )
    sync_bn: bool = _devices(
        True,
        "several processes: statistics of batch norm over the whole batch, so that a run does not depend on the number "
        "of processes; off: each process uses its own part of the batch",
    )
    knn_backend: str = _devices(
        "auto",
        "nearest-neighbour search. auto, torch: PyTorch; faiss: faiss's flat index, with equal results, slower on a "
        "CPU; ivf: discovery searches faiss's inverted lists and misses some neighbours (the log says how many)",
        choices=("auto", "faiss", "torch", "ivf"),
    )
    discovery_memory: int = _devices(
        1024,
        "memory that discovery may take in each process, beyond the bank and a few numbers for each image; the "
        "backends faiss and ivf take another copy of the bank",
        "MiB",
        bounds=_at_least(1),
    )

    @property
    def sigma(self) -> float:
        """sigma of the kNN vote: --knn-sigma in effect."""
        return in_effect("knn_sigma", self.__getattribute__)

    @property
    def select_rate(self) -> Union[float, Fraction]:
        """Share of the images by which the anchors grow in each round: --ANs-select-rate in effect."""
        return in_effect("ANs_select_rate", self.__getattribute__)

    def as_dict(self) -> dict[str, Any]:
        """The options that belong to the run rather than to one call (`Option.kept`), as plain values.

        Only None, bool, int, float, str and lists of these: safe in YAML, in JSON and in a checkpoint.
        """
        kept = {option.name for option in OPTIONS if option.kept}
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name in kept}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_HINTS = get_type_hints(Options)
OPTIONS = tuple(completed(each.name, _HINTS[each.name], each.metadata["option"]) for each in fields(Options))
"""In the order of help, docs and config.yaml; options of one group stand together."""


def in_effect(name: str, value: Callable[[str], Any]) -> Any:
    """An option's value; for the `auto` of a number, the number that follows from other options.

    Args:
        value: of an option by its name.
    """
    if value(name) != AUTO:
        return value(name)
    if name == "knn_sigma":
        return value("npc_temperature")  # one parameter in the authors' code
    if name == "ANs_select_rate":
        return Fraction(1, max(1, value("max_round") - 1))  # S = r / R of equation 6
    return AUTO


def of_older_version(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values that older versions used in place of options they lacked, where these are not today's defaults.

    Args:
        options: those in the checkpoint or config.yaml.
    """
    is_alexnet = str(options.get("network")).lower() == "alexnet"
    return {"init": "released" if is_alexnet else "torchvision", "knn_sigma": 0.1, "ANs_select_rate": 0.25}


@dataclass(frozen=True)
class Settings:
    """The merged options."""

    options: Options
    sources: Mapping[str, str]
    """For every option's name: `default`, `checkpoint`, a config file as given, or `command line`."""
    files: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The options in each config file, by its path as given."""
