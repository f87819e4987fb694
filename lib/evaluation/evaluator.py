"""kNN accuracy of a network on the test images."""

from typing import Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.distributed.shard import Shard
from lib.distributed.world import World
from lib.embedder import Embedder
from lib.evaluation.features import extract
from lib.evaluation.knn import Accuracy, weighted_knn


class Evaluator:
    """Judges features by the labels of their nearest training images.

    Args:
        pipeline: the data set with its labels.
        world: the processes of the run, each of which brings the features of its share of the images.
        dim: D.
        protocol: `knn` (weighted vote of `k`) or `nn` (the single nearest decides).
        k, sigma: of the weighted vote.
        backend: of the search.
    """

    name = "kNN"
    note = ""
    described = "test images by the labels of their nearest training images"

    def __init__(self, pipeline: Pipeline, world: World, dim: int, protocol: str, k: int, sigma: float, backend: str):
        self.pipeline, self.world = pipeline, world
        self.dim = dim
        self.k = 1 if protocol == "nn" else k
        self.sigma = sigma
        self.backend = backend

    @property
    def possible(self) -> bool:
        """Whether there are test images and labels to judge by."""
        return self.pipeline.labelled_test

    def with_bank(self, embedder: Embedder, memory: Tensor) -> Optional[Accuracy]:
        """While training: this process's bank rows stand for training features. None if nothing can be judged."""
        return self._judge(embedder, memory) if self.possible else None

    def recomputed(self, embedder: Embedder) -> Optional[Accuracy]:
        """Features of the training images computed anew with the test transform: what a finished network is worth."""
        if not self.possible:
            return None
        rows = self.world.rows(len(self.pipeline.train))
        database = extract(embedder, self.pipeline.train_batches_plain(), rows, self.dim)
        return self._judge(embedder, database)

    def _judge(self, embedder: Embedder, database: Tensor) -> Accuracy:
        train, test = self.pipeline.train, self.pipeline.test
        own = extract(embedder, self.pipeline.test_batches(), self.world.rows(len(test)), self.dim)
        queries = self.world.gather_rows(own, self.world.shares(len(test)))
        device = queries.device
        return weighted_knn(
            queries,
            torch.from_numpy(test.labels).to(device),
            database,
            torch.from_numpy(train.labels).to(device),
            len(train.classes),
            self.k,
            self.sigma,
            self.backend,
            Shard(self.world, len(train)),
        )
