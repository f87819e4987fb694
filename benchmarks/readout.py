"""kNN accuracy of the features of a network or of pixels: output and backbone, plain and whitened."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import and_discovery
import datasets
import models
from datasets.pipeline import Pipeline
from lib.config import Options, collect
from lib.distributed.world import World
from lib.evaluation.features import BACKBONE, EMBEDDING, Whitening
from lib.evaluation.knn import log_votes, rank_of_truth
from lib.nn.embedder import Embedder
from lib.pretrained.bank import fit_batch_norm, images_to_fit
from lib.runtime.device import choose_precision
from lib.search.exact import nearest
from models.whitenet import WhiteNet

KS = (20, 200)
SIGMA = 0.1
CPU = torch.device("cpu")
Extract = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a run, as its options describe them, on the CPU and in memory.

    Attributes:
        options: the merged options.
        pipeline: serves the images.
        labels: (N,) and (Q,) int64, of training and test images.
        ks: numbers of neighbours; accuracies are given for each.
        sigma: of the vote.
    """

    options: Options
    pipeline: Pipeline
    labels: tuple[Tensor, Tensor]
    ks: tuple[int, ...] = KS
    sigma: float = SIGMA

    @classmethod
    def of(cls, arguments: Sequence[str], ks: tuple[int, ...] = KS, sigma: float = SIGMA) -> "Images":
        """The images that main.py would load with these arguments.

        Raises:
            UserError: as main.py.
        """
        options = collect(arguments).options
        pipeline = Pipeline(datasets.load(options.dataset, options.data_root, options.download), options, CPU)
        labels = tuple(torch.from_numpy(each.labels) for each in (pipeline.train, pipeline.test))
        return cls(options, pipeline, labels, ks, sigma)

    def accuracies(self, extract: Extract) -> dict[str, dict[str, float]]:
        """kNN top-1 in % by kind (`plain` or `whitened`) and K, on all test images.

        Args:
            extract: (B, 3, S, S) images with the test transform -> (B, d) features of any length.
        """
        train, test = (
            rows_of(extract, batches) for batches in (self.pipeline.train_batches_plain(), self.pipeline.test_batches())
        )
        return self.accuracies_of(train, test)

    def accuracies_of(self, train: Tensor, test: Tensor) -> dict[str, dict[str, float]]:
        """Accuracies of given features (N, d) and (Q, d), rows of any length."""
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
        whiten = Whitening.fit(train, World.alone())
        return {"plain": self._knn(train, test), "whitened": self._knn(whiten(train), whiten(test))}

    def _knn(self, train: Tensor, test: Tensor) -> dict[str, float]:
        labels, of_test = self.labels
        classes = len(self.pipeline.train.classes)
        similarities, indices = nearest(test, train, max(self.ks))  # one search, ordered by similarity
        found = {}
        for k in self.ks:
            votes = log_votes(similarities[:, :k], labels[indices[:, :k]], classes, self.sigma)
            found[str(k)] = round(100 * (rank_of_truth(votes, of_test) == 0).double().mean().item(), 2)
        return found


@torch.no_grad()
def rows_of(extract: Extract, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """(N, d) float32 features of all images, in the order of the batches."""
    return torch.cat([extract(images).float() for images, _ in batches])


def of_session(images: Images, session: str) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of a finished run's features by level, `embedding` and `backbone`."""
    found = {}
    for level in (EMBEDDING, BACKBONE):
        model = and_discovery.load(session, "cpu", images.options.precision, features=level, whiten=False)
        found[level] = images.accuracies(model.features)
    return found


def of_untrained(images: Images) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of the network that a run with these options starts from; if its first layer whitens patches, also of
    that layer's maps averaged to 4 x 4 (`first layer`)."""
    options, pipeline = images.options, images.pipeline
    network = models.build(options.network, options.low_dim, options.stem, options.size, options.init, options.seed)
    sample = images_to_fit(pipeline, options.size)
    if isinstance(network, WhiteNet):
        network.fit_stem(sample)
    embedder = Embedder(network, CPU, choose_precision(options.precision, CPU))
    fit_batch_norm(embedder, sample)
    found = {
        level: images.accuracies(embedder.eval_copy(backbone=level == BACKBONE)) for level in (EMBEDDING, BACKBONE)
    }
    if isinstance(network, WhiteNet):
        found["first layer"] = images.accuracies(lambda batch: F.adaptive_avg_pool2d(network.stem(batch), 4).flatten(1))
    return found


def of_pixels(images: Images) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of pixels, centred (`plain`: minus the mean image) and whitened."""
    train, test = (
        rows_of(lambda batch: batch.flatten(1), batches)
        for batches in (images.pipeline.train_batches_plain(), images.pipeline.test_batches())
    )
    mean = train.mean(dim=0)
    whiten = Whitening.fit(train, World.alone())
    found = {
        "plain": images._knn(F.normalize(train - mean, dim=1), F.normalize(test - mean, dim=1)),
        "whitened": images._knn(whiten(train), whiten(test)),
    }
    return {"pixels": found}
