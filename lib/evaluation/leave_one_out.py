"""kNN accuracy where no image is kept apart: every training image is judged by all the others."""

from typing import Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.distributed.world import World
from lib.embedder import Embedder
from lib.evaluation.features import extract
from lib.evaluation.knn import Accuracy, weighted_knn
from lib.insight.survey import sample_rows

LARGEST_SAMPLE = 10_000
"""Images that are judged; of more, so many at even distances. All vote."""


class LeaveOneOut:
    """As `Evaluator`, for training images of which some or all have labels and that have no test images beside them.

    Labels play no part in the training, so the images were not learnt with the answer; but they were learnt from, and
    another picture of the same moment may be among the others. Images without a label are not judged and do not vote.
    """

    name = "leave-one-out kNN"
    note = " (leave-one-out)"
    described = "leave-one-out: each labelled training image by the labels of its nearest others"

    def __init__(self, pipeline: Pipeline, world: World, dim: int, protocol: str, k: int, sigma: float, backend: str):
        self.pipeline, self.world, self.dim = pipeline, world, dim
        self.k, self.sigma, self.backend = 1 if protocol == "nn" else k, sigma, backend
        labels = pipeline.train.labels
        known = torch.empty(0) if labels is None else torch.from_numpy(labels)
        self._labelled = torch.nonzero(known >= 0).flatten()  # (L,) rows
        self._labels = known[self._labelled]

    @property
    def possible(self) -> bool:
        """Whether there are labels to judge by."""
        return len(self._labelled) >= 2

    def with_bank(self, embedder: Embedder, memory: Tensor) -> Optional[Accuracy]:
        """While training: by this process's rows of the bank. None if nothing can be judged."""
        return self._judge(memory) if self.possible else None

    def recomputed(self, embedder: Embedder) -> Optional[Accuracy]:
        """By features computed anew with the test transform: what a finished network is worth."""
        if not self.possible:
            return None
        rows = self.world.rows(len(self.pipeline.train))
        return self._judge(extract(embedder, self.pipeline.train_batches_plain(), rows, self.dim))

    def _judge(self, own_rows: Tensor) -> Accuracy:
        rows = self.world.gather_rows(own_rows, self.world.shares(len(self.pipeline.train)))
        database, labels = rows[self._labelled.to(rows.device)], self._labels.to(rows.device)
        judged = sample_rows(len(labels), LARGEST_SAMPLE).to(rows.device)
        classes = len(self.pipeline.train.classes)
        return weighted_knn(
            database[judged],
            labels[judged],
            database,
            labels,
            classes,
            self.k,
            self.sigma,
            self.backend,
            own=judged,
        )
