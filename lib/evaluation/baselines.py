"""kNN baselines that need no learning: pixels, whitened pixels, and the network before the run."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Optional, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import Shard, World
from lib.evaluation.evaluator import Protocol, Results
from lib.evaluation.features import Features, Whitening, extract
from lib.evaluation.knn import KNN
from lib.nn.embedder import Embedder
from lib.search.exact import nearest

PIXELS_SIDE = 16
"""Larger images are averaged down to this many pixels a side, which makes 768 numbers."""
LARGEST = {"cpu": 20_000, "cuda": 100_000}
"""The most training images for which baselines are measured, by kind of device: more would take minutes."""
NEAR = 10
"""Nearest images by pixels among which the nearest one by features is looked for."""

PIXELS, WHITENED, UNTRAINED, PRETRAINED = "pixels", "whitened pixels", "untrained network", "network at the start"


class PixelRows:
    """Downsampled pixels of some images, copied from the batches of a pass over them.

    Args:
        rows: the rows that the batches contain, as for `lib.evaluation.features.extract`.
        size: the side S of the images.

    Attributes:
        values: (n, 3 side^2) float32, with side = min(S, `PIXELS_SIDE`).
        complete: whether all rows have been copied.
    """

    def __init__(self, rows: slice, size: int, device: torch.device):
        self._start, self._side = rows.start, min(size, PIXELS_SIDE)
        self.values = torch.empty(rows.stop - rows.start, 3 * self._side**2, device=device)
        self._copied = 0

    @classmethod
    def of_training(cls, pipeline: Pipeline, world: World, size: int) -> "PixelRows":
        """The rows of this process's share of the training images, still to be copied."""
        return cls(world.rows(len(pipeline.train)), size, world.device)

    @property
    def complete(self) -> bool:
        return self._copied == len(self.values)

    def copied(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches: images (B, 3, S, S) and row numbers (B,), each row once."""
        for images, indices in batches:
            self.values[indices - self._start] = F.adaptive_avg_pool2d(images.float(), self._side).flatten(1)
            self._copied += len(indices)
            yield images, indices

    def read(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Consume all batches; returns `values`."""
        for _ in self.copied(batches):
            pass
        return self.values


class _Precomputed:
    """Precomputed features, with the attributes of `Features` that kNN reads."""

    def __init__(self, train: Tensor, all_test: Optional[Tensor]):
        self.train, self.all_test = train, all_test


def measurable(pipeline: Pipeline, world: World) -> bool:
    """Whether the training images are few enough for `baselines`."""
    return len(pipeline.train) <= LARGEST[world.device.type]


@torch.no_grad()  # Gloo of PyTorch 1.10 writes into no tensor made in inference mode
def baselines(
    pipeline: Pipeline,
    world: World,
    knn: KNN,
    embedder: Embedder,
    size: int,
    dim: int,
    network: str,
    pixels: PixelRows,
    features: Tensor,
) -> dict[str, float]:
    """Top-1 of kNN on each baseline, a share of 1. All processes must call it.

    Args:
        knn: the protocol; the data set has the labels that it needs.
        embedder, size, dim: the network before the first step, the side of its images, and D.
        network: its name in the result.
        pixels, features: of this process's training images. Where the pixels are not complete, both are read here, in
            one pass over the files, and `features` is ignored.

    Returns:
        by name, in the order of the table.
    """

    def read(batches: Iterable[tuple[Tensor, Tensor]], rows: slice, into: PixelRows) -> Tensor:
        return extract(embedder, into.copied(batches), rows, dim)

    if not pixels.complete:
        features = read(pipeline.train_batches_plain(), world.rows(len(pipeline.train)), pixels)
    test: Optional[tuple[Tensor, Tensor]] = None
    if pipeline.test is not None:
        count = len(pipeline.test)
        rows = world.rows(count)
        own = PixelRows(rows, size, world.device)
        own_features = read(pipeline.test_batches(), rows, own)
        shares = world.shares(count)
        test = world.gather_rows(own.values, shares), world.gather_rows(own_features, shares)
    whiten = Whitening.fit(pixels.values, world)
    rows_by_name = {
        PIXELS: _Precomputed(_centred(pixels.values, whiten), None if test is None else _centred(test[0], whiten)),
        WHITENED: _Precomputed(whiten(pixels.values), None if test is None else whiten(test[0])),
        network: _Precomputed(features, None if test is None else test[1]),
    }
    return {name: knn.accuracy(cast(Features, rows)).top1 for name, rows in rows_by_name.items()}


def _centred(rows: Tensor, whiten: Whitening) -> Tensor:
    return F.normalize(rows - whiten.mean, dim=1)


class PixelNeighbours(Protocol):
    """Compares the nearest images by features with the nearest by pixels; needs no labels.

    Args:
        pipeline, world: the images, and the processes of the run. The first one searches, the others wait for it.
        size: the side of the network's images.
    """

    name, every = "neighbours", 0

    def __init__(self, pipeline: Pipeline, world: World, size: int):
        self.pipeline, self.world, self.size = pipeline, world, size

    @classmethod
    def create(cls, name: str, options: Options, pipeline: Pipeline, world: World) -> "PixelNeighbours":
        return cls(pipeline, world, options.size)

    @staticmethod
    def measurable(pipeline: Pipeline) -> bool:
        """Whether the training images are few enough; the search is on the CPU."""
        return len(pipeline.train) <= LARGEST["cpu"]

    def evaluate(self, features: Features) -> Optional[Results]:
        """The results on the first process; None on the others."""
        found = features.all_train()
        own = PixelRows.of_training(self.pipeline, self.world, self.size).read(self.pipeline.train_batches_plain())
        pixels = Shard(self.world, len(self.pipeline.train)).gather_to_first(own)
        if found is None or pixels is None:
            return None
        whiten = Whitening.fit(pixels, World.alone(pixels.device))
        scalars = {}
        for name, rows in ((PIXELS, _centred(pixels, whiten)), (WHITENED, whiten(pixels))):
            first, near = shared_neighbours(found, rows, NEAR)
            scalars.update({_key("of", name): first, _key("near", name): near})
        return Results(scalars, f"and pixels: {shared_text(scalars, len(found))}")


def shared_neighbours(features: Tensor, pixels: Tensor, k: int) -> tuple[float, float]:
    """Shares of the images whose nearest other image by `features` is the nearest, or of the k nearest, by `pixels`.

    Args:
        features, pixels: (N, D) and (N, P) of the same images, rows of unit length. Of equal ones the lower index
            counts.
        k: at most N - 1 are used.
    """
    own = torch.arange(len(features))
    found = nearest(features, features, 1, own)[1]  # (N, 1)
    same = found == nearest(pixels, pixels, min(k, len(own) - 1), own)[1]  # (N, k)
    return same[:, 0].double().mean().item(), same.any(dim=1).double().mean().item()


def shared_text(found: Mapping[str, float], images: int) -> str:
    """The results of `PixelNeighbours` on this number of images in words, and their meaning."""

    def shares(name: str) -> str:
        return f"{100 * found[_key('of', name)]:.1f} % ({100 * found[_key('near', name)]:.1f} %)"

    near = min(NEAR, images - 1)
    chance = f"{100 / (images - 1):.1f} % ({100 * near / (images - 1):.1f} %)"
    return (
        f"the nearest image by features is the nearest (among the {near} nearest) by pixels for {shares(PIXELS)} of "
        f"the images, by whitened pixels for {shares(WHITENED)}; by chance for {chance}. Near 100 % the features "
        "show what pixels show. A lower share means that they differ from pixels, either by what they learnt or "
        "because they learnt too little; only the pictures show which"
    )


def _key(how: str, name: str) -> str:
    return f"neighbours_{how}_{name.replace(' ', '_')}"


def shared_in(record: Mapping[str, float]) -> Optional[dict[str, float]]:
    """The results of `PixelNeighbours` in a line of metrics.jsonl; None if it has none."""
    keys = [_key(how, name) for name in (PIXELS, WHITENED) for how in ("of", "near")]
    return {key: record[key] for key in keys} if all(record.get(key) is not None for key in keys) else None


def below_pixels(top1: float, found: Mapping[str, float]) -> Optional[str]:
    """A warning for a run whose features are worse than pixels; None if they are not.

    Args:
        top1: of the finished network.
        found: as `baselines` gives it.
    """
    name = max((WHITENED, PIXELS), key=lambda each: found.get(each, 0.0))
    if top1 >= found.get(name, 0.0):
        return None
    return (
        f"the network's features ({100 * top1:.2f} %) are worse than {name} ({100 * found[name]:.2f} %): it has learnt "
        "too little yet; more epochs (--max-epoch), configs/quick.yaml or a trained network (--pretrained) help"
    )
