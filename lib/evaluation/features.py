"""Features of the images of a data set: their definition, whitening and computation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.distributed.world import Shard, World
from lib.evaluation.bank_statistics import effective_rank
from lib.nn.embedder import Embedder

EMBEDDING, BACKBONE = "embedding", "backbone"
SHRINK = 0.03
"""Share of the largest singular value that is added to all: directions of little variance are mostly noise. On 16 x 16
pixels of CIFAR-10 kNN (K = 200) reaches 47.9, 53.7, 51.2 and 45.6 % for shares of 0.001, 0.03, 0.1 and 0.3."""
RANK = 1e-6
"""Share of the largest singular value below which another one counts as 0, being the rounding of float32 features."""


_PART = 1 << 14
"""Rows converted to float64 at a time."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """x -> unit((x - mean) W), with W = U diag(1 / (s + SHRINK max s)) U^T of the centred rows' singular values s > 0.

    Directions U in which the fitted rows do not vary are left out: W would amplify them most, and only new rows have
    components along them.

    Attributes:
        mean: (D,) float32, of the rows it was fitted on.
        matrix: (D, D) float32, W.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, rows: Tensor, world: World) -> "Whitening":
        """Fit to the training rows of all processes.

        Where there are fewer rows than dimensions, or all rows are equal, the shrinking keeps W finite.

        Args:
            rows: (n, D), those of this process.
        """
        count = world.all_reduce_sum(torch.tensor([float(len(rows))], dtype=torch.float64, device=rows.device))
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for part in rows.split(_PART):  # a float64 copy of all rows may not fit
            total += part.double().sum(dim=0)
        mean = world.all_reduce_sum(total) / count
        products = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
        for part in rows.split(_PART):
            centred = part.double() - mean
            products.addmm_(centred.t(), centred)
        variances, directions = torch.linalg.eigh(world.all_reduce_sum(products) / count)
        deviations = variances.clamp_(min=0).sqrt_()
        largest = deviations.max()
        if largest == 0:
            return cls(mean.float(), torch.eye(len(mean), device=rows.device))
        shares = deviations / largest  # so that features of any size keep within float32
        matrix = (directions * ((shares > RANK) / (shares + SHRINK))) @ directions.t()
        return cls(mean.float(), matrix.float())

    def to(self, device: torch.device) -> "Whitening":
        """A copy on another device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, D) -> (n, D), rows of unit length."""
        return F.normalize((rows - self.mean) @ self.matrix, dim=1)


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """The definition of a feature: the level of the network that it comes from, and whether it is whitened.

    Attributes:
        level: `embedding`, the network's output of D numbers; or `backbone`, the activations h that the last layer
            `fc` takes, h / |h| (512 numbers of a ResNet18, 2,048 of a ResNet50, 4,096 of an AlexNet).
        whitened: whether features of that level are whitened.
        whitening: fitted on training features; None until then, and where nothing is whitened.
    """

    level: str = EMBEDDING
    whitened: bool = False
    whitening: Optional[Whitening] = None

    @property
    def is_plain(self) -> bool:
        """Whether features are the network's output, not whitened, as in the memory bank."""
        return self.level == EMBEDDING and not self.whitened

    def __str__(self) -> str:
        return f"{self.level}, whitened" if self.whitened else self.level

    def is_like(self, other: "FeatureSpace") -> bool:
        """Whether both have the same level and the same `whitened`, fitted or not."""
        return (self.level, self.whitened) == (other.level, other.whitened)

    def dim(self, network: nn.Module, low_dim: int) -> int:
        """Length d of a feature, for a network whose output has length `low_dim`."""
        return low_dim if self.level == EMBEDDING else network.get_parameter("fc.weight").shape[1]

    def eval_copy(self, embedder: Embedder) -> Embedder:
        """The network for evaluation: images (B, 3, S, S) to unit rows (B, d) of the level, not yet whitened."""
        return embedder.eval_copy(backbone=self.level == BACKBONE)

    @property
    def flags(self) -> str:
        """The options that select it."""
        return f"--features {self.level} --whiten" if self.whitened else f"--features {self.level}"

    def fitted(self, rows: Tensor, world: World) -> "FeatureSpace":
        """The space whose whitening is that of the training images. All processes must call it.

        Args:
            rows: (n, d) of the level, those of this process.
        """
        return replace(self, whitening=Whitening.fit(rows, world)) if self.whitened else self

    def __call__(self, rows: Tensor) -> Tensor:
        """Unit rows (n, d) of the level -> features (n, d).

        Raises:
            ValueError: the whitening is not fitted yet.
        """
        if not self.whitened:
            return rows
        if self.whitening is None:
            raise ValueError("the whitening is not fitted: it needs training features first")
        return self.whitening(rows)


PLAIN = FeatureSpace()
"""The network's output, not whitened, which the loss, the memory bank and the published protocol use."""


@torch.inference_mode()
def extract(
    embedder: Embedder,
    batches: Iterable[tuple[Tensor, Tensor]],
    rows: slice,
    dim: int,
    space: FeatureSpace = PLAIN,
) -> Tensor:
    """Unit features of every image, in the order of their indices.

    Args:
        batches: pairs of images (B, 3, S, S) and row numbers (B,), each row once.
        rows: the rows that `batches` contain: all of a set, or one process's share of it.
        dim: D, length of a feature.
        space: its level is used; the features are not whitened here.

    Returns:
        (stop - start, D) float32 on the network's device. The network is left in evaluation mode.
    """
    frozen = space.eval_copy(embedder)
    features = torch.empty(rows.stop - rows.start, dim, device=embedder.device)
    for images, indices in batches:
        features[indices - rows.start] = frozen(images)
    return features


class Features:
    """Features of the training and test images by one network, computed once, when they are first used.

    All processes must use them in the same order.

    Args:
        embedder: the network.
        pipeline: the images.
        world: the processes of the run, each of which computes the features of its share.
        dim: D, numbers of a feature.
        train: (n, D) unit features of this process's training images if there are any already, such as the rows of
            the memory bank while training; None: they are computed with the test transform.
        space: the feature space. Its whitening is fitted on the computed training features.

    Attributes:
        space: the same, fitted once the training features are computed.
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
        self._rank: Optional[float] = None

    @property
    def train(self) -> Tensor:
        """(n, D) unit features of this process's share of the training images."""
        if self._train is None:
            rows = self.world.rows(len(self.pipeline.train))
            found = extract(self.embedder, self.pipeline.train_batches_plain(), rows, self._dim, self.space)
            if self.space.whitened:
                self._rank = effective_rank(found, self.world)
            self.space = self.space.fitted(found, self.world)
            self._train = self.space(found)
        return self._train

    @property
    def rank(self) -> float:
        """The effective rank of the training features, before whitening; see `effective_rank`."""
        rows = self.train
        if self._rank is None:
            self._rank = effective_rank(rows, self.world)
        return self._rank

    @property
    def all_test(self) -> Tensor:
        """(Q, D) unit features of all test images, the same in every process."""
        if self._test is None:
            if self.space.whitened:
                _ = self.train  # fits the whitening
            assert self.pipeline.test is not None
            count = len(self.pipeline.test)
            own = extract(self.embedder, self.pipeline.test_batches(), self.world.rows(count), self._dim, self.space)
            self._test = self.space(self.world.gather_rows(own, self.world.shares(count)))
        return self._test

    def all_train(self) -> Optional[Tensor]:
        """(N, D) unit features of all training images, on the CPU of the first process; None in the others."""
        return Shard(self.world, len(self.pipeline.train)).gather_to_first(self.train)
