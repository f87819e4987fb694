"""The network that is judged, and its features."""

from typing import Optional

from torch import Tensor

from datasets.pipeline import Pipeline
from lib.distributed.shard import Shard
from lib.distributed.world import World
from lib.evaluation.feature_space import PLAIN, FeatureSpace
from lib.evaluation.features import extract
from lib.nn.embedder import Embedder


class Subject:
    """Features are computed when they are first asked for, and once.

    With several processes all must ask for the same things in the same order.

    Args:
        embedder: the network.
        pipeline: the images.
        world: the processes of the run, each of which computes the features of its share.
        dim: D, numbers of a feature.
        train: (n, D) unit features of this process's training images if there are any already, such as the rows of
            the memory bank while training; None: they are computed with the test transform.
        space: what a feature is. A whitening is fitted on the training features that are computed.

    Attributes:
        space: the same, fitted once the training features are there.
    """

    def __init__(
        self,
        embedder: Embedder,
        pipeline: Pipeline,
        world: World,
        dim: int,
        train: Optional[Tensor] = None,
        space: FeatureSpace = PLAIN,
    ):
        self.embedder, self.pipeline, self.world, self.space = embedder, pipeline, world, space
        self._dim, self._train = dim, train
        self._test: Optional[Tensor] = None

    @property
    def train(self) -> Tensor:
        """(n, D) unit features of this process's share of the training images."""
        if self._train is None:
            rows = self.world.rows(len(self.pipeline.train))
            found = extract(self.embedder, self.pipeline.train_batches_plain(), rows, self._dim, self.space)
            self.space = self.space.fitted(found, self.world)
            self._train = self.space(found)
        return self._train

    @property
    def all_test(self) -> Tensor:
        """(Q, D) unit features of all test images, the same in every process."""
        if self._test is None:
            if self.space.whitened:
                _ = self.train  # fits the whitening
            count = len(self.pipeline.test)
            own = extract(self.embedder, self.pipeline.test_batches(), self.world.rows(count), self._dim, self.space)
            self._test = self.space(self.world.gather_rows(own, self.world.shares(count)))
        return self._test

    def all_train(self) -> Optional[Tensor]:
        """(N, D) unit features of all training images, on the CPU of the first process; None in the others."""
        return Shard(self.world, len(self.pipeline.train)).collected(self.train)
