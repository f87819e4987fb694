"""Every option there is. One added here is known to YAML files, the command line, help and README."""

from dataclasses import replace

from lib.config.option import ANY_LENGTH, BOOL, CHOICE, FLOAT, INT, PATH, TEXT, Bounds, Form, Option
from lib.config.registry import DATASETS, NETWORKS, PROTOCOLS


def _at_least(low: float) -> Bounds:
    return Bounds(low=low)


def _group(name: str, *options: Option) -> tuple[Option, ...]:
    return tuple(replace(option, group=name) for option in options)


_POSITIVE = Bounds(low=0, low_open=True)
_SHARE = Bounds(low=0, high=1)
_SHARE_ABOVE_0 = Bounds(low=0, high=1, low_open=True)
_SHARE_BELOW_1 = Bounds(low=0, high=1, high_open=True)

_NORMALISATIONS = ("imagenet", "cifar10", "cifar100", "svhn", "half")
_FOLDER_NAME = Form(r"(?!\.{1,2}$)[^/\\\x00-\x1f]+", "a plain folder name")
_SAVE_EVERY = Form(r"[1-9][0-9]{0,8}( ?(steps?|s|min|h))?", "a number of steps such as 500, or a time such as 10min")
_NUM_CLUSTERS = Form(r"auto|[1-9][0-9]*", "auto, or a whole number from 1 on")
_THREADS = Form(r"auto|[1-9][0-9]{0,2}", "auto, or a whole number from 1 to 999")
_GPUS = Form(r"auto|cpu|[0-9]+(,[0-9]+)*", "auto, cpu, or indices of GPUs such as 0 or 0,1")

_GENERAL = _group(
    "general",
    Option(
        "cfgs",
        PATH,
        (),
        "YAML files of options; later files win over earlier ones",
        length=ANY_LENGTH,
        kept=False,
    ),
    Option("print_args", BOOL, False, "print the merged options and where each came from, then stop", kept=False),
    Option("debug_errors", BOOL, False, "show the traceback of an error", kept=False),
)

_DATA = _group(
    "data",
    Option("dataset", CHOICE, "cifar10", "what to learn from", choices=tuple(DATASETS)),
    Option("data_root", PATH, None, "folder of the data set; null: data/DATASET", nullable=True),
    Option("download", BOOL, False, "fetch the data set if it is not there", kept=False),
    Option(
        "labels",
        PATH,
        None,
        "photos: what is known about the pictures, for reports only. folders: the name of the folder below data_root "
        "that a picture lies in; or a CSV file with two columns, path and label; null: nothing",
        nullable=True,
    ),
    Option("batch_size", INT, 128, "images in a batch", "images", bounds=_at_least(2)),
    Option(
        "workers_num",
        INT,
        2,
        "processes that load images, for each process of the run; none are used where images are augmented on the "
        "device",
        "processes",
        bounds=_at_least(0),
    ),
    Option(
        "prefetch",
        INT,
        2,
        "batches that each loader process holds ready; fewer take less memory",
        "batches",
        bounds=_at_least(1),
    ),
    Option(
        "skip_bad_images",
        BOOL,
        False,
        "decode every image file once before the run and leave out, and list, those that cannot be; without it such a "
        "file ends the run",
    ),
    Option(
        "shrink",
        INT,
        None,
        "read every image file once and keep its middle square at so many pixels a side, in memory and beside the "
        "folder; null: read the files in every epoch",
        "pixels",
        bounds=_at_least(4),
        nullable=True,
    ),
    Option(
        "resize",
        INT,
        None,
        "test images: the shorter side is scaled to this before the centre crop; null: to the size",
        "pixels",
        bounds=_at_least(4),
        nullable=True,
    ),
    Option("size", INT, 32, "side of the square that the network sees", "pixels", bounds=_at_least(4)),
    Option(
        "scale",
        FLOAT,
        (0.2, 1.0),
        "share of the image's area that a random crop covers, from and to",
        bounds=_SHARE_ABOVE_0,
        length=2,
    ),
    Option(
        "ratio",
        FLOAT,
        (3 / 4, 4 / 3),
        "width over height of a random crop, from and to; fractions such as 3/4 are read",
        bounds=_POSITIVE,
        length=2,
    ),
    Option(
        "colorjitter",
        FLOAT,
        (0.4, 0.4, 0.4, 0.4),
        "strength of the random change of brightness, contrast, saturation and hue; hue at most 0.5",
        bounds=_at_least(0),
        length=4,
    ),
    Option("random_grayscale", FLOAT, 0.2, "how often a training image turns grey", "probability", bounds=_SHARE),
    Option("random_horizontal_flip", BOOL, False, "mirror half of the training images"),
    Option(
        "normalise",
        CHOICE,
        None,
        "whose channel means and standard deviations are used; pre-trained models mostly want those of imagenet; "
        "half: 0.5 for all; null: the data set's own",
        choices=_NORMALISATIONS,
        nullable=True,
    ),
    Option(
        "means",
        FLOAT,
        None,
        "mean of each channel, taken off; wins over --normalise",
        "intensity, 0 to 1",
        nullable=True,
        length=3,
    ),
    Option(
        "stds",
        FLOAT,
        None,
        "standard deviation of each channel, divided by; wins over --normalise",
        "intensity, 0 to 1",
        bounds=_POSITIVE,
        nullable=True,
        length=3,
    ),
    Option(
        "classes",
        TEXT,
        (),
        "use only the images of these classes, all by name or all by number from 0; none named: all",
        length=ANY_LENGTH,
    ),
    Option(
        "limit_train",
        INT,
        None,
        "use only so many training images, a random subset fixed by the seed; null: all",
        "images",
        bounds=_at_least(1),
        nullable=True,
    ),
    Option(
        "limit_test",
        INT,
        None,
        "use only so many test images, a random subset fixed by the seed; null: all",
        "images",
        bounds=_at_least(1),
        nullable=True,
    ),
    Option(
        "augment_on",
        CHOICE,
        "auto",
        "augment whole batches on the device, or each image in the loader processes; auto: on the device if"
        " the images are one array that fits (CIFAR, SVHN, digits, folders of small images of one size)",
        choices=("auto", "device", "workers"),
    ),
)

_NETWORK = _group(
    "network",
    Option(
        "network",
        CHOICE,
        "resnet18",
        "the network that turns an image into a feature. convnet is small, for small images and tests; whitenet is "
        "small and begins with filters that whiten patches of the training images, for runs of minutes",
        choices=tuple(NETWORKS),
    ),
    Option("low_dim", INT, 128, "length of a feature (D)", bounds=_at_least(1)),
    Option(
        "stem",
        CHOICE,
        "auto",
        "first layers for small images or for large ones; auto: small below a size of 64 pixels",
        choices=("auto", "small", "large"),
    ),
    Option(
        "init",
        CHOICE,
        "released",
        "how the weights are drawn. released: PyTorch's defaults, as the authors' code has; torchvision: as "
        "torchvision's ResNets, convolutions normal with variance 2 / fan_out",
        choices=("released", "torchvision"),
    ),
)

_METHOD = _group(
    "method",
    Option(
        "ANs_select_rate",
        FLOAT,
        "auto",
        "share of the images that become anchors; each round adds another such share. auto: 1 / (max_round - 1), so "
        "that the last round takes all, as the paper's r/R",
        bounds=_SHARE_ABOVE_0,
        auto=True,
    ),
    Option("ANs_size", INT, 1, "neighbours of an anchor, itself not counted (k)", "images", bounds=_at_least(1)),
    Option(
        "npc_temperature",
        FLOAT,
        0.1,
        "temperature of the softmax over the memory bank (tau)",
        bounds=_POSITIVE,
    ),
    Option(
        "npc_momentum",
        FLOAT,
        0.5,
        "share of its old value that a row of the memory bank keeps when it is updated: 1 - eta, since the paper's eta "
        "weighs the new feature",
        bounds=_SHARE_BELOW_1,
    ),
    Option(
        "bank_init",
        CHOICE,
        "random",
        "first rows of the memory bank. random: as the authors' code; features: what the untrained network makes of "
        "the training images, prepared as test images. With --pretrained or --first-round 1 they are features in any "
        "case",
        choices=("random", "features"),
    ),
    Option("max_round", INT, 5, "rounds, round 0 without anchors included", "rounds", bounds=_at_least(1)),
    Option(
        "first_round",
        INT,
        0,
        "round to start with. 1: without round 0; the first anchors are discovered from the features of the untrained "
        "network, or of that of --pretrained",
        "rounds",
        bounds=Bounds(low=0, high=1),
    ),
    Option("max_epoch", INT, 200, "epochs in a round", "epochs", bounds=_at_least(1)),
    Option(
        "minutes",
        FLOAT,
        None,
        "time for the whole run: chooses max_epoch by the speed of some steps before the first, when a run starts; "
        "null: max_epoch stands",
        "minutes",
        bounds=_POSITIVE,
        nullable=True,
    ),
    Option("iter_size", INT, 1, "batches whose gradients make one optimiser step", "batches", bounds=_at_least(1)),
)

_OPTIMISATION = _group(
    "optimisation",
    Option("optimizer", CHOICE, "sgd", "the optimiser", choices=("sgd", "adam", "adamw", "rmsprop")),
    Option("base_lr", FLOAT, 0.03, "learning rate at the start of every round", bounds=_POSITIVE),
    Option("momentum", FLOAT, 0.9, "sgd, rmsprop: momentum", bounds=_SHARE_BELOW_1),
    Option("nesterov", BOOL, True, "sgd: Nesterov momentum"),
    Option("dampening", FLOAT, 0.0, "sgd: dampening of the momentum", bounds=_SHARE),
    Option("weight_decay", FLOAT, 5e-4, "weight decay, of all parameters", bounds=_at_least(0)),
    Option(
        "lr_policy",
        CHOICE,
        "step",
        "how the learning rate falls within a round. step: base_lr * lr_decay_rate ** ((epoch -"
        " lr_decay_offset) // lr_decay_step) from epoch lr_decay_offset on, base_lr before. multistep: times"
        " lr_decay_rate at each epoch of lr_schedule. Epochs count from 0 in each round. cosine: from base_lr to 0"
        " along half a cosine over the whole run",
        choices=("step", "multistep", "cosine", "fixed"),
    ),
    Option(
        "lr_warmup",
        INT,
        0,
        "epochs at the start of the run in which the learning rate rises, in equal steps",
        "epochs",
        bounds=_at_least(0),
    ),
    Option("lr_decay_offset", INT, 80, "step: epoch from which the steps count", "epochs", bounds=_at_least(0)),
    Option("lr_decay_step", INT, 40, "step: epochs from one decay to the next", "epochs", bounds=_at_least(1)),
    Option(
        "lr_decay_rate",
        FLOAT,
        0.1,
        "step, multistep: factor of one decay",
        bounds=_SHARE_ABOVE_0,
    ),
    Option(
        "lr_schedule",
        INT,
        (),
        "multistep: epochs of the decays, increasing",
        "epochs",
        bounds=_at_least(1),
        length=ANY_LENGTH,
    ),
)

_EVALUATION = _group(
    "evaluation",
    Option(
        "protocol",
        CHOICE,
        ("knn",),
        "how features are judged. knn: the nearest training images vote on the class of a test image; nn: the nearest "
        "one decides; linear: a linear classifier on the frozen activations of each stage; cluster: k-means on the "
        "training images, without labels or against them",
        choices=tuple(PROTOCOLS),
        length=ANY_LENGTH,
    ),
    Option("knn_k", INT, 200, "knn: nearest training images that vote (K)", "images", bounds=_at_least(1)),
    Option(
        "knn_sigma",
        FLOAT,
        "auto",
        "knn: temperature of the votes (sigma). auto: that of the loss (--npc-temperature), as in the authors' code",
        bounds=_POSITIVE,
        auto=True,
    ),
    Option(
        "eval_freq",
        INT,
        1,
        "knn, nn: epochs between evaluations while training; the last epoch of a round is always evaluated",
        "epochs",
        bounds=_at_least(1),
    ),
    Option(
        "linear_freq",
        INT,
        0,
        "linear: epochs between evaluations while training, the last epoch of each round included; 0: only at the end",
        "epochs",
        bounds=_at_least(0),
    ),
    Option(
        "cluster_freq",
        INT,
        0,
        "cluster: as --linear-freq",
        "epochs",
        bounds=_at_least(0),
    ),
    Option(
        "num_clusters",
        TEXT,
        "auto",
        "cluster: how many clusters (K); auto: found from the features",
        "clusters",
        form=_NUM_CLUSTERS,
    ),
    Option(
        "features",
        CHOICE,
        "embedding",
        "what the finished network's features are in clusters, --export, --embed and the report. embedding: its "
        "output; backbone: what its last layer takes (512 numbers of a resnet18). kNN judges the output in any case, "
        "and other features beside it",
        choices=("embedding", "backbone"),
    ),
    Option(
        "whiten",
        BOOL,
        False,
        "whiten these features (ZCA) by the mean and covariance of the training images' features",
    ),
    Option("test_only", BOOL, False, "evaluate the network of --resume or --pretrained and stop", kept=False),
)

_USE = _group(
    "using a network",
    Option(
        "pretrained",
        PATH,
        None,
        "start from the weights in this file: a checkpoint of this project or of the authors' code, or a state dict",
        nullable=True,
    ),
    Option(
        "export",
        PATH,
        None,
        "write features, neighbours and clusters of the data set, and the network, into this new folder and stop",
        nullable=True,
        kept=False,
    ),
    Option(
        "embed",
        PATH,
        None,
        "write features, clusters and nearest training images of all pictures in this folder, and stop",
        nullable=True,
        kept=False,
    ),
    Option(
        "output",
        PATH,
        None,
        "--embed: the new folder to write into; null: embedded/NAME in the session",
        nullable=True,
        kept=False,
    ),
    Option(
        "overwrite",
        BOOL,
        False,
        "--export, --embed: replace an earlier result at the same place",
        kept=False,
    ),
    Option(
        "neighbours",
        INT,
        10,
        "--export, --embed: how many nearest training images of each image are written",
        "images",
        bounds=_at_least(1),
        kept=False,
    ),
)

_SESSION = _group(
    "session",
    Option(
        "session",
        TEXT,
        None,
        "name of the run's folder; null: the time it started",
        nullable=True,
        form=_FOLDER_NAME,
        kept=False,
    ),
    Option(
        "sess_dir",
        PATH,
        "sessions",
        "folder that holds the sessions; a checkpoint does not bring it along",
        kept=False,
    ),
    Option("seed", INT, 0, "seed of everything random", bounds=Bounds(low=0, high=2**32, high_open=True)),
    Option(
        "resume",
        PATH,
        None,
        "go on from a checkpoint file, from a session folder, or from the `last` session",
        nullable=True,
        kept=False,
    ),
    Option(
        "restart",
        BOOL,
        False,
        "with --resume: go on in a new session and leave the old one as it is",
        kept=False,
    ),
    Option(
        "save_every",
        TEXT,
        "30min",
        "how often to save within an epoch too: after so many steps, or after a time; null: after epochs only",
        "steps, or with s, min, h",
        form=_SAVE_EVERY,
        nullable=True,
    ),
    Option(
        "keep",
        INT,
        2,
        "newest checkpoints to keep, so that there is one to fall back to; the last and the best of each round stay "
        "besides",
        "files",
        bounds=_at_least(1),
    ),
    Option("debug", BOOL, False, "write nothing: no session folder, no checkpoints, no logs"),
    Option("brief", BOOL, False, "show only the results of rounds on the terminal"),
    Option(
        "display_freq",
        INT,
        20,
        "steps between looks at the loss, each of which waits for the device; sets how often progress is shown",
        "steps",
        bounds=_at_least(1),
    ),
    Option("log_file", BOOL, True, "write log.txt into the session folder"),
    Option("log_tfb", BOOL, True, "write TensorBoard files into the session folder"),
    Option(
        "tfb_anchors",
        INT,
        24,
        "TensorBoard: anchors shown with their neighbours in each round, a third each of lowest, middle and highest "
        "entropy; 0: none",
        "images",
        bounds=_at_least(0),
    ),
    Option(
        "tfb_projector",
        INT,
        2000,
        "TensorBoard: images in the embedding projector, with thumbnails, an even sample of all; 0: no projector",
        "images",
        bounds=Bounds(low=0, high=5000),
    ),
    Option(
        "report",
        BOOL,
        True,
        "write report.html into the session folder at the end of each round; takes some seconds each time",
    ),
    Option(
        "compare",
        PATH,
        (),
        "folders of two sessions or more: print what differs between them and what each came to, write it as a page, "
        "and stop",
        length=ANY_LENGTH,
        kept=False,
    ),
    Option(
        "compare_html",
        PATH,
        None,
        "where the page of --compare goes; null: a new file in --sess-dir",
        nullable=True,
        kept=False,
    ),
    Option("report_only", BOOL, False, "write report.html of the session of --resume again and stop", kept=False),
)

_DEVICES = _group(
    "devices",
    Option(
        "gpus",
        TEXT,
        "auto",
        "where to compute; auto: a GPU for each process if there are any, else the CPU; several indices: a process for "
        "each. --resume does not bring indices back, and cpu to one process only: say it anew",
        form=_GPUS,
    ),
    Option(
        "threads",
        TEXT,
        "auto",
        "threads that each process computes with on the CPU. auto: OMP_NUM_THREADS if that is set, else the process's "
        "share of the cores; where other programs are at work the fastest of 1, half and all, timed before the first "
        "epoch. A checkpoint brings the number along: the last digits of results depend on it",
        form=_THREADS,
    ),
    Option(
        "precision",
        CHOICE,
        "auto",
        "what the network computes in; auto: bf16 where the hardware multiplies in it, else fp32, in which the paper's "
        "numbers were made. Features, loss, bank and entropies are float32 in any case",
        choices=("auto", "fp32", "bf16"),
    ),
    Option(
        "deterministic",
        BOOL,
        False,
        "CUDA: the same bits in every run, at some cost in speed; on a CPU they are the same in any case",
    ),
    Option("tf32", BOOL, False, "CUDA: let float32 convolutions round to TF32"),
    Option(
        "compile",
        BOOL,
        False,
        "torch.compile the network (PyTorch 2 and a C++ compiler); off by default: on a CPU it gained nothing when "
        "measured",
    ),
    Option(
        "winograd",
        BOOL,
        True,
        "CPU, fp32, PyTorch 2, without --compile: in training, compute wide 3x3 convolutions of large batches by "
        "Winograd's minimal filtering, which is faster, rounds to about 3e-6 of the result instead of 1e-6, and takes "
        "some 400 MiB more for ResNet18 at 32 pixels and 128 images",
    ),
    Option(
        "cuda_graph",
        BOOL,
        True,
        "CUDA: record a training step once and replay it, so that small batches do not wait for launches",
    ),
    Option(
        "sync_bn",
        BOOL,
        True,
        "several processes: statistics of batch norm over the whole batch, so that a run does not depend on the number "
        "of processes; off: each process has those of its share",
    ),
    Option(
        "knn_backend",
        CHOICE,
        "auto",
        "what finds neighbours; faiss, torch: exactly, the same ones; auto: the faster of them for the device and the "
        "number of neighbours; ivf: discovery looks into faiss's lists and misses some (the log says how many)",
        choices=("auto", "faiss", "torch", "ivf"),
    ),
    Option(
        "discovery_memory",
        INT,
        1024,
        "memory that discovery may take beyond the bank and a few numbers for each image, in each process; the "
        "backends faiss and ivf take a copy of the bank besides",
        "MiB",
        bounds=_at_least(1),
    ),
)

OPTIONS: tuple[Option, ...] = (
    *_GENERAL,
    *_DATA,
    *_NETWORK,
    *_METHOD,
    *_OPTIMISATION,
    *_EVALUATION,
    *_USE,
    *_SESSION,
    *_DEVICES,
)
"""In the order of help, README and config.yaml; options of one group stand together."""
