"""kNN accuracy without learning: of pixels, of whitened pixels, and of the network before the run."""

from collections.abc import Iterable, Mapping
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.distributed.world import World
from lib.evaluation.features import Whitening
from lib.evaluation.knn import Voting
from lib.nn.embedder import Embedder

SIDE = 16
"""Larger images are averaged down to so many pixels a side, which are 768 numbers."""
LARGEST = {"cpu": 20_000, "cuda": 100_000}
"""Training images up to which baselines are measured, by kind of device: of more, the first step waits for minutes."""

PIXELS, WHITENED, UNTRAINED, PRETRAINED = "pixels", "whitened pixels", "untrained network", "network at the start"


class _Given:
    """Features that are there already, in the place of `lib.evaluation.features.Subject`."""

    def __init__(self, train: Tensor, all_test: Optional[Tensor]):
        self.train, self.all_test = train, all_test


@torch.no_grad()  # Gloo of PyTorch 1.10 writes into no tensor made in inference mode
def baselines(
    pipeline: Pipeline, world: World, vote: Voting, embedder: Embedder, size: int, dim: int, network: str
) -> dict[str, float]:
    """Top-1, a share of 1, of the vote on each baseline. All processes must call it.

    Args:
        vote: judges; its labels are there.
        embedder, size, dim: the network before the first step, the side of its images, and D.
        network: what it is called in the answer.

    Returns:
        by name, in the order in which they are shown; empty where there are more than `LARGEST` training images.
    """
    if len(pipeline.train) > LARGEST[world.device.type]:
        return {}
    frozen = embedder.eval_copy()
    side = min(size, SIDE)
    train = _read(pipeline.train_batches_plain(), world.rows(len(pipeline.train)), frozen, side, dim)
    test = (None, None)
    if pipeline.test is not None:
        count = len(pipeline.test)
        own = _read(pipeline.test_batches(), world.rows(count), frozen, side, dim)
        test = tuple(world.gather_rows(rows, world.shares(count)) for rows in own)
    pixels, features = train
    whiten = Whitening.fit(pixels, world)

    def centred(rows: Optional[Tensor]) -> Optional[Tensor]:
        return None if rows is None else F.normalize(rows - whiten.mean, dim=1)

    def whitened(rows: Optional[Tensor]) -> Optional[Tensor]:
        return None if rows is None else whiten(rows)

    given = {
        PIXELS: _Given(centred(pixels), centred(test[0])),
        WHITENED: _Given(whitened(pixels), whitened(test[0])),
        network: _Given(features, test[1]),
    }
    return {name: vote.accuracy(subject).top1 for name, subject in given.items()}


def _read(
    batches: Iterable[tuple[Tensor, Tensor]], rows: slice, frozen: Embedder, side: int, dim: int
) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3 side^2) and features (n, D) of the images of this process, both in one pass over the files."""
    count = rows.stop - rows.start
    pixels = torch.empty(count, 3 * side**2, device=frozen.device)
    features = torch.empty(count, dim, device=frozen.device)
    for images, indices in batches:
        pixels[indices - rows.start] = F.adaptive_avg_pool2d(images.float(), side).flatten(1)
        features[indices - rows.start] = frozen(images)
    return pixels, features


def below_pixels(top1: float, found: Mapping[str, float]) -> Optional[str]:
    """What to say at the end of a run whose features are worse than pixels; None if they are not.

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
