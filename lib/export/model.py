"""A finished network for inference, with its preprocessing and the features of its training images."""

import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import datasets
import models
from datasets.files.decode import Source, read_rgb
from datasets.files.in_memory import OVERSIZE, middle_square
from datasets.image_set import ImageSet
from datasets.loaders.workers import WorkerLoader
from datasets.pipeline import EVAL_PIXELS, Pipeline
from datasets.sources.image_folder import find_images
from datasets.transforms import pil as transforms
from lib.checkpoint.manager import open_checkpoint
from lib.config import Options
from lib.config.registry import Statistics, statistics_of
from lib.errors import UserError
from lib.evaluation.features import BACKBONE, EMBEDDING, PLAIN, FeatureSpace
from lib.export.kept_features import KeptFeatures, read_arrays, space_of
from lib.export.result_folder import DESCRIPTION, FEATURES, STATE, WHITENING
from lib.logger.console import LOGGER
from lib.nn.embedder import Embedder
from lib.pretrained import weights_file
from lib.pretrained.fitting import load_exactly
from lib.pretrained.weights_file import WeightsFile
from lib.runtime.device import choose_device, choose_precision
from lib.search.exact import nearest

Known = list[tuple[FeatureSpace, Optional[Tensor]]]

log = logging.getLogger(LOGGER)
_SHRINKING = (
    "cut the middle square and scale it to {side} x {side} pixels (PIL, bilinear; of large JPEG files Image.draft "
    "decodes no less than {least} pixels of each side)"
)


@dataclass(frozen=True)
class Preprocessing:
    """The deterministic transform of a picture into the network's input.

    Attributes:
        size: side of the square, in pixels.
        resize: the shorter side is scaled to this before the centre crop.
        means, stds: of the channels, for images in [0, 1].
        shrink: side of the square that the middle of each picture was scaled to before anything else (`--shrink`), or
            None.
    """

    size: int
    resize: int
    means: tuple[float, ...]
    stds: tuple[float, ...]
    shrink: Optional[int] = None

    @classmethod
    def of(
        cls, size: int, resize: Optional[int], statistics: Statistics, shrink: Optional[int] = None
    ) -> "Preprocessing":
        """Create it from the options' `resize`, where None means `size`."""
        return cls(size, resize or size, *statistics, shrink)

    def __call__(self, picture: Source) -> Tensor:
        """A path or a PIL image, both as `read_rgb` takes them -> (3, S, S) float32.

        Raises:
            UserError: it cannot be read as an image.
        """
        return self.transform(read_rgb(picture, self.at_least))

    @property
    def at_least(self) -> Optional[int]:
        """Smallest side, in pixels, to which a large file may be decoded; None: its full size."""
        return None if self.shrink is None else OVERSIZE * self.shrink

    def transform(self, image: Image.Image) -> Tensor:
        """Transform a decoded image, as `read_rgb` returns it."""
        if self.shrink is not None:
            image = middle_square(image, self.shrink)
        return transforms.test_transform(self.size, self.resize, self.means, self.stds)(image)

    def steps(self) -> list[str]:
        """The steps in words."""
        return [
            "read as RGB, 8 bits a channel, upright (EXIF orientation applied), transparent parts on white",
            *self._shrinking(),
            f"scale the shorter side to {self.resize} pixels (PIL, bilinear)",
            f"cut the central {self.size} x {self.size} pixels",
            "divide by 255, so that values are in [0, 1]",
            "subtract means and divide by stds, for each channel",
        ]

    def _shrinking(self) -> list[str]:
        return [] if self.shrink is None else [_SHRINKING.format(side=self.shrink, least=self.at_least)]


class Model:
    """Features of pictures, and the training images nearest to them.

    Args:
        network: images (B, 3, S, S) to unit features (B, D).
        preprocessing: of its images.
        memory: (N, d) features of the training images, or None where they are not known.
        device: where the network runs.
        dtype: of autocast, or None for plain float32.
        space: the feature space: the network's output, for which d is D, or another, fitted one.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        memory: Optional[Tensor],
        device: torch.device,
        dtype: Optional[torch.dtype] = None,
        space: FeatureSpace = PLAIN,
    ):
        self.preprocessing, self.space = preprocessing, space
        self.memory = None if memory is None else F.normalize(memory.float().cpu(), dim=1)
        self._embedder = space.eval_copy(Embedder(network.eval(), device, dtype))
        on_cpu = None if space.whitening is None else space.whitening.to(torch.device("cpu"))
        self._finish = replace(space, whitening=on_cpu)

    def features(self, images: Union[Tensor, Source, Sequence[Source]]) -> Tensor:
        """Features (B, d) float32 on the CPU, rows of unit length.

        Args:
            images: a batch (B, 3, S, S) of floating-point numbers, already preprocessed; or pictures, as PIL
                images or paths of files, which give the same; a single one counts as a batch of one. With --shrink
                a large JPEG file is decoded at a reduced size, while an image that the caller has decoded is scaled
                from all its pixels.

        Raises:
            UserError: a picture cannot be read as an image, or the batch has another shape or holds whole numbers.
        """
        if isinstance(images, Tensor):
            return self._features_of_batch(images)
        if isinstance(images, (Image.Image, str, os.PathLike)) or not _holds_several(images):
            images = [images]  # type: ignore[list-item]  # mypy does not know what _holds_several rules out
        pictures = list(images)
        for each in pictures:
            if not isinstance(each, (Image.Image, str, os.PathLike)):
                kind = type(each).__name__
                raise UserError(f"a {kind} is not a picture; give paths, PIL images, or a batch (B, 3, S, S)")
        found = []
        for start in range(0, len(pictures), self._batch_size):
            batch = [self.preprocessing(each) for each in pictures[start : start + self._batch_size]]
            found.append(self._features_of_batch(torch.stack(batch)))
        return torch.cat(found) if found else self._features_of_batch(torch.empty(0, 3, *[self.preprocessing.size] * 2))

    def folder(self, folder: Union[str, os.PathLike], workers: int = 0) -> tuple[list[str], Tensor]:
        """The paths of all pictures in a folder, at any depth, sorted, and their features (B, d).

        Args:
            workers: processes that load pictures; 0: this one.

        Raises:
            UserError: there is no such folder, or no picture in it, or one cannot be read.
        """
        paths = pictures_in(folder)
        found = [features for features, _ in self.batches(paths, workers)]
        return paths, torch.cat(found)

    def batches(self, paths: Sequence[str], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, d) and row numbers (B,) of files, batch by batch, in order.

        Raises:
            UserError: a file cannot be read as an image.
            RunError: a DataLoader worker died.
        """
        loader = WorkerLoader(
            ImageSet(paths),
            self.preprocessing.transform,
            self._batch_size,
            workers,
            0,
            self._embedder.device,
            self.preprocessing.size,
            at_least=self.preprocessing.at_least,
        )
        for images, rows in loader.batches(torch.arange(len(paths)), ()):
            yield self._features_of_batch(images), rows.cpu()
        loader.close()

    def nearest(self, features: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
        """The training images most similar to each feature.

        Args:
            features: (B, d) as `features` gives them, also as a NumPy array.
            k: how many, at most N.

        Returns:
            cosine similarities (B, k), highest first, and rows (B, k) int64 of the training set, from 0.

        Raises:
            UserError: the features of the training images are not known, k is out of range, or the features given
                have another shape.
        """
        if self.memory is None:
            raise UserError(
                f"the training images' features ({self.space}) are not kept with this network, so the "
                "nearest ones cannot be found"
            )
        if not 1 <= k <= len(self.memory):
            raise UserError(f"{k} nearest training images were asked for; there are {len(self.memory)}")
        features = torch.as_tensor(features)
        if features.dim() != 2 or features.shape[1] != self.memory.shape[1]:
            raise UserError(f"features of shape {tuple(features.shape)}; (B, {self.memory.shape[1]}) is needed")
        return nearest(features.float().cpu(), self.memory, k)

    @property
    def _batch_size(self) -> int:
        return max(1, EVAL_PIXELS // self.preprocessing.size**2)

    @torch.no_grad()  # not inference_mode, whose results autograd refuses ever after
    def _features_of_batch(self, images: Tensor) -> Tensor:
        side = self.preprocessing.size
        if images.dim() != 4 or images.shape[1:] != (3, side, side):
            raise UserError(f"a batch of shape {tuple(images.shape)}; this network takes (B, 3, {side}, {side})")
        if not images.is_floating_point():
            raise UserError(f"a batch of {images.dtype}; this network takes float32, the output of `preprocessing`")
        if len(images) == 0:  # PyTorch 1.10 does not convolve nothing
            return self._features_of_batch(images.new_zeros(1, 3, side, side))[:0]
        return self._finish(self._embedder(images.to(self._embedder.device, torch.float32)).float().cpu())


def _holds_several(images: object) -> bool:
    """Whether these may be several pictures: iterating over bytes or an open file gives numbers or lines."""
    return isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray, memoryview, io.IOBase))


def pictures_in(folder: Union[str, os.PathLike]) -> list[str]:
    """The paths of all image files in a folder, at any depth, sorted; hidden ones are skipped.

    Warnings of the logger `and` count other skipped files.

    Raises:
        UserError: there is no such folder, it cannot be read, or holds no picture.
    """
    if not Path(folder).is_dir():
        if Path(folder).exists():
            raise UserError(f"{os.fspath(folder)}: it is a file; give a folder of pictures, such as the one it lies in")
        raise UserError(f"{os.fspath(folder)}: there is no such folder of pictures")
    found = find_images(os.fspath(folder), f"{os.fspath(folder)}: the folder")
    for line in found.skipped():
        log.warning("%s", line)
    return found.pictures


def open_model(
    path: Union[str, os.PathLike],
    device: str = "auto",
    computes_in: str = "fp32",
    features: Optional[str] = None,
    whiten: Optional[bool] = None,
) -> Model:
    """The network of a session, a checkpoint file, or a folder that --export wrote.

    Args:
        path: of any of them; of a session the last epoch is taken.
        device: `auto`, `cpu`, or the index of a GPU, as --gpus.
        computes_in: `fp32`, `bf16` or `auto`, as --precision.
        features: `embedding` or `backbone`, as --features; None: as in the run or the export.
        whiten: as --whiten, likewise.

    Raises:
        UserError: the path or the device does not exist, the file is damaged, or it has no whitening of these
            features.
    """
    path = Path(path).expanduser()
    exported = path / DESCRIPTION if path.is_dir() else path.with_name(DESCRIPTION)
    if exported.is_file() and (path.is_dir() or path.name == STATE):
        file = weights_file.read(exported.with_name(STATE))
        described, known = _exported(exported)
    elif not path.exists():
        raise UserError(f"{path}: there is no such session, checkpoint or exported folder")
    else:
        saved, source, _ = open_checkpoint(str(path), "sessions")
        file = weights_file.of_checkpoint(saved, source)
        described = FeatureSpace(saved["options"].get("features", EMBEDDING), saved["options"].get("whiten", False))
        kept = KeptFeatures.of_checkpoint(source, saved)
        known = [(PLAIN, file.memory)] + ([] if kept is None else [(kept.space, kept.train)])
    chosen = choose_device(device)
    level, whitened = (
        described.level if features is None else features,
        described.whitened if whiten is None else whiten,
    )
    if level not in (EMBEDDING, BACKBONE):
        raise UserError(f"features={level!r}: {EMBEDDING!r} or {BACKBONE!r} is needed")
    space, memory = _chosen(FeatureSpace(level, whitened), known, path)
    return _model(file, space, memory, chosen, choose_precision(computes_in, chosen))


def _chosen(wanted: FeatureSpace, known: Known, path: Path) -> tuple[FeatureSpace, Optional[Tensor]]:
    """The feature space, and the training features in it if they are known."""
    for space, memory in known:
        if space.is_like(wanted):
            return space, memory
    if wanted.whitened:
        raise UserError(
            f"{path} keeps no whitening of its {wanted.level} features: a run with {wanted.flags} keeps it at its "
            f"end, also if --resume continues a finished run; or load(..., whiten=False)"
        )
    return wanted, None


def _model(
    file: WeightsFile,
    space: FeatureSpace,
    memory: Optional[Tensor],
    device: torch.device,
    dtype: Optional[torch.dtype],
) -> Model:
    described: dict[str, Any] = {**Options().as_dict(), **file.options}
    network = models.build(described["network"], described["low_dim"], described["stem"], described["size"])
    load_exactly(network, file.weights, file.name)
    statistics = file.statistics or statistics_of(file.about.get("dataset", ""))
    preprocessing = Preprocessing.of(described["size"], described["resize"], statistics, file.shrink)
    return Model(network, preprocessing, memory, device, dtype, space)


def _exported(description: Path) -> tuple[FeatureSpace, Known]:
    """The feature space of an export; and the fitted space with the features of the training images, the first rows of
    features.npy, if the folder has that file."""
    features, whitening = description.with_name(FEATURES), description.with_name(WHITENING)
    try:
        described = weights_file.description_of(description)
        described_space = described.get("features", {"level": EMBEDDING, "whitened": False})  # earlier exports lack it
        wanted = FeatureSpace(str(described_space["level"]), bool(described_space["whitened"]))
        if wanted.whitened and not whitening.is_file():
            return wanted, []
        space = space_of(wanted.level, read_arrays(whitening) if wanted.whitened else {})
        if not features.is_file():
            return wanted, [(space, None)]
        rows = described["source"]["rows"]["train"]
        train = torch.from_numpy(np.array(np.load(features, mmap_mode="r", allow_pickle=False)[:rows]))
        return wanted, [(space, train)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"the files beside {description} are not as --export writes them ({error})") from error


def training_paths(
    options: Options, fingerprint: Optional[str], contents: Optional[list[int]]
) -> tuple[Optional[Sequence[str]], str]:
    """The paths of the training images in the order of the bank, or None; and a line for the log.

    The options say where the data set is. It is used only if it is the one of the checkpoint.
    """
    if fingerprint is None:
        return None, "named by their rows: the file does not say which images they are"
    try:
        labels = options.labels if options.classes else None  # which choose among the images
        split = datasets.load(options.dataset, options.data_root, False, labels)
        # only names are needed: nothing is decoded and no batch is loaded
        pipeline = Pipeline(split, replace(options, augment_on="workers", shrink=None), torch.device("cpu"))
    except UserError as error:
        return None, f"named by their rows, since the data set is not available ({error})"
    if not pipeline.are_those_of(fingerprint, contents):
        return None, f"named by their rows, since the {options.dataset} images here are not those of the checkpoint"
    if pipeline.train.paths is None:
        return None, f"named by their rows: {options.dataset} has no files of single images"
    return pipeline.train.paths, "named by their paths"
