"""Protocols `knn` and `nn`: the labels of the nearest training images decide."""

from typing import Optional

import torch

from datasets.pipeline import Pipeline
from lib.distributed.shard import Shard
from lib.distributed.world import World
from lib.evaluation.knn import Accuracy, weighted_knn
from lib.evaluation.protocol import Findings, Protocol
from lib.evaluation.subject import Subject


def one_class(pipeline: Pipeline) -> Optional[str]:
    """Why labels judge nothing if all images are of one class; None if they are not."""
    train = pipeline.train
    if train.labels is not None or len(train.classes) != 1:
        return None
    return f"{pipeline.name} has one class only ({train.classes[0]}), so every accuracy would be 100 %"


class Voting(Protocol):
    """Accuracy on the test images by the labels of their nearest training images.

    Args:
        pipeline: the data set with its labels.
        world: the processes of the run, each of which brings the features of its share of the images.
        name: `knn` (weighted vote of `k`) or `nn` (the single nearest decides).
        every: epochs between evaluations.
        k, sigma: of the weighted vote.
        backend: of the search.
        key: what its numbers are called in metrics.jsonl, before `_top1` and `_top5`.
    """

    title, note = "kNN", ""  # what the log calls it, and says behind an accuracy
    described = "test images by the labels of their nearest training images"

    def __init__(
        self,
        pipeline: Pipeline,
        world: World,
        name: str,
        every: int,
        k: int,
        sigma: float,
        backend: str,
        key: Optional[str] = None,
    ):
        self.pipeline, self.world = pipeline, world
        self.name, self.every = name, every
        self.k = 1 if name == "nn" else k
        self.sigma = sigma
        self.backend = backend
        self.key = name if key is None else key

    def obstacle(self) -> Optional[str]:
        if self.pipeline.labelled_test:
            return None
        return one_class(self.pipeline) or f"{self.pipeline.name} has no labelled test images to judge by"

    def judge(self, subject: Subject) -> Optional[Findings]:
        """None if there is nothing to judge by."""
        if self.obstacle() is not None:
            return None
        accuracy = self.accuracy(subject)
        scalars = {f"{self.key}_top1": accuracy.top1, f"{self.key}_top5": accuracy.top5}
        return Findings(scalars, f"{accuracy}{self.note}")

    def accuracy(self, subject: Subject) -> Accuracy:
        """The vote on every test image against its label."""
        train, test = self.pipeline.train, self.pipeline.test
        queries = subject.all_test
        device = queries.device
        return weighted_knn(
            queries,
            torch.from_numpy(test.labels).to(device),
            subject.train,
            torch.from_numpy(train.labels).to(device),
            len(train.classes),
            self.k,
            self.sigma,
            self.backend,
            Shard(self.world, len(train)),
        )
