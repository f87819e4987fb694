"""The network that is judged, and its features."""

from typing import Optional

from torch import Tensor

from datasets.pipeline import Pipeline
from lib.distributed.shard import Shard
from lib.distributed.world import World
from lib.embedder import Embedder
from lib.evaluation.features import extract


class Subject:
    """Features are computed when they are first asked for, and once.

    With several processes all must ask for the same things in the same order.

    Args:
        embedder: the network.
        pipeline: the images.
        world: the processes of the run, each of which computes the features of its share.
        dim: D.
        train: (n, D) unit features of this process's training images if there are any already, such as the rows of
            the memory bank while training; None: they are computed with the test transform.
    """

    def __init__(self, embedder: Embedder, pipeline: Pipeline, world: World, dim: int, train: Optional[Tensor] = None):
        self.embedder, self.pipeline, self.world = embedder, pipeline, world
        self._dim, self._train = dim, train
        self._test: Optional[Tensor] = None

    @property
    def train(self) -> Tensor:
        """(n, D) unit features of this process's share of the training images."""
        if self._train is None:
            rows = self.world.rows(len(self.pipeline.train))
            self._train = extract(self.embedder, self.pipeline.train_batches_plain(), rows, self._dim)
        return self._train

    @property
    def all_test(self) -> Tensor:
        """(Q, D) unit features of all test images, the same in every process."""
        if self._test is None:
            count = len(self.pipeline.test)
            own = extract(self.embedder, self.pipeline.test_batches(), self.world.rows(count), self._dim)
            self._test = self.world.gather_rows(own, self.world.shares(count))
        return self._test

    def all_train(self) -> Optional[Tensor]:
        """(N, D) unit features of all training images, on the CPU of the first process; None in the others."""
        return Shard(self.world, len(self.pipeline.train)).collected(self.train)
