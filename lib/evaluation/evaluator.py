"""kNN accuracy of a network on the test images."""

from typing import Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.embedder import Embedder
from lib.evaluation.features import extract
from lib.evaluation.knn import Accuracy, weighted_knn


class Evaluator:
    """Judges features by the labels of their nearest training images.

    Args:
        pipeline: the data set with its labels.
        dim: D.
        protocol: `knn` (weighted vote of `k`) or `nn` (the single nearest decides).
        k, sigma: of the weighted vote.
        backend: of the search.
    """

    def __init__(self, pipeline: Pipeline, dim: int, protocol: str, k: int, sigma: float, backend: str):
        self.pipeline = pipeline
        self.dim = dim
        self.k = 1 if protocol == "nn" else k
        self.sigma = sigma
        self.backend = backend

    @property
    def possible(self) -> bool:
        """Whether there are test images and labels to judge by."""
        return self.pipeline.labelled_test

    def with_bank(self, embedder: Embedder, memory: Tensor) -> Optional[Accuracy]:
        """While training: the bank rows (N, D) stand for the training features. None if nothing can be judged."""
        return self._judge(embedder, memory) if self.possible else None

    def recomputed(self, embedder: Embedder) -> Optional[Accuracy]:
        """Features of the training images computed anew with the test transform: what a finished network is worth."""
        if not self.possible:
            return None
        database = extract(embedder, self.pipeline.train_batches_plain(), len(self.pipeline.train), self.dim)
        return self._judge(embedder, database)

    def _judge(self, embedder: Embedder, database: Tensor) -> Accuracy:
        train, test = self.pipeline.train, self.pipeline.test
        queries = extract(embedder, self.pipeline.test_batches(), len(test), self.dim)
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
        )
