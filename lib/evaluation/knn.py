"""kNN classifiers: the weighted vote of Wu et al. 2018 (`knn`), and its case of one neighbour (`nn`)."""

import copy
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import Shard, World
from lib.evaluation.evaluator import Protocol, Results
from lib.evaluation.features import Features
from lib.search.exact import ExactSearch, sample_rows

CHUNK_VOTES = 2**24
"""Votes, and similarities of neighbours, held at a time: 128 MiB each."""
MOST_QUERIES = 10_000
"""The most query images; of more, an even sample. All images vote."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of 1. `top5` is None where there are fewer than five classes."""

    top1: float
    top5: Optional[float]

    def __str__(self) -> str:
        text = f"top-1 {100 * self.top1:.2f} %"
        return text if self.top5 is None else f"{text}, top-5 {100 * self.top5:.2f} %"


def log_votes(similarities: Tensor, neighbour_labels: Tensor, classes: int, sigma: float) -> Tensor:
    """log s_c, with s_c = sum over the K neighbours of class c of exp(cos / sigma), up to a term common to all classes.

    Each class is summed from its own largest exponent, so that no class with a neighbour loses its vote, however small
    sigma is.

    Args:
        similarities: (Q, K) cosines.
        neighbour_labels: (Q, K) int64 in [0, C).
        classes: C.
        sigma: temperature of the vote, > 0.

    Returns:
        (Q, C) float64; -inf for a class without a neighbour; the nearest neighbour alone would make 0.
    """
    # older PyTorch has no deterministic scatter_add_ on CUDA
    device = "cpu" if torch.are_deterministic_algorithms_enabled() else similarities.device
    exponents, labels = similarities.double().to(device), neighbour_labels.to(device)
    exponents = (exponents - exponents.max(dim=1, keepdim=True).values) / sigma  # (Q, K), 0 for the nearest
    exponents.clamp_(min=torch.finfo(torch.float64).min)  # -inf would be no vote
    largest = torch.full((len(exponents), classes), float("-inf"), dtype=torch.float64, device=device)
    for label, exponent in zip(labels.split(1, dim=1), exponents.split(1, dim=1)):  # one neighbour of each query
        largest.scatter_(1, label, torch.maximum(largest.gather(1, label), exponent))
    weights = torch.exp(exponents - largest.gather(1, labels))  # in (0, 1], 1 for the nearest of each class
    votes = torch.zeros_like(largest).scatter_add_(1, labels, weights)
    return (largest + votes.log()).to(similarities.device)


def classes_ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes score higher than the true one, (Q,) int64; of equals the lower index is ahead.

    Args:
        scores: (Q, C).
        labels: (Q,) int64 in [0, C).
    """
    of_truth = scores.gather(1, labels[:, None])  # (Q, 1)
    index = torch.arange(scores.shape[1], device=scores.device)
    return ((scores > of_truth) | ((scores == of_truth) & (index < labels[:, None]))).sum(dim=1)


def rank_of_truth(votes: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one, (Q,) int64; 0 is a correct top-1 answer.

    A class of equal vote and lower index comes first. A class without a vote is never predicted: its rank is C.

    Args:
        votes: (Q, C) as `log_votes` gives them.
        labels: (Q,) int64 in [0, C).
    """
    without_vote = votes.gather(1, labels[:, None])[:, 0] == float("-inf")
    return classes_ahead(votes, labels).masked_fill(without_vote, votes.shape[1])


def weighted_knn(
    queries: Tensor,
    labels: Tensor,
    database: Tensor,
    database_labels: Tensor,
    classes: int,
    k: int,
    sigma: float,
    backend: str = "auto",
    shard: Optional[Shard] = None,
    own: Optional[Tensor] = None,
) -> Accuracy:
    """Accuracy of the vote of the k nearest rows of the database.

    Args:
        queries: (Q, D) unit features with labels (Q,); with several processes the same on each.
        database: (N, D) unit features with database_labels (N,); with several processes each has the features that
            `shard` names and the labels of all.
        classes: C.
        k: neighbours that vote; all N where there are fewer.
        sigma: temperature of the vote.
        backend: of the search.
        shard: which rows `database` is; None: all of them.
        own: (Q,) int64, each query's own row in the database, which has no vote on it; or None.
    """
    k = min(k, len(database_labels) - (own is not None))
    search, ranks = ExactSearch(database, backend, shard), []
    for chunk in torch.arange(len(queries), device=queries.device).split(max(1, CHUNK_VOTES // max(k, classes))):
        similarities, indices = search(queries[chunk], k, None if own is None else own[chunk])
        votes = log_votes(similarities, database_labels[indices], classes, sigma)
        ranks.append(rank_of_truth(votes, labels[chunk]))
    rank = torch.cat(ranks)
    top5 = (rank < 5).double().mean().item() if classes >= 5 else None
    return Accuracy((rank == 0).double().mean().item(), top5)


def one_class(pipeline: Pipeline) -> Optional[str]:
    """Why a data set of one class cannot be evaluated; None if there are more."""
    train = pipeline.train
    if train.labels is not None or len(train.classes) != 1:
        return None
    return f"{pipeline.name} has one class only ({train.classes[0]}), so every accuracy would be 100 %"


class KNN(Protocol):
    """Accuracy on the test images by the labels of their nearest training images.

    Args:
        pipeline: the data set with its labels.
        world: the processes of the run, each of which has the features of its share of the images.
        name: `knn` (weighted vote of `k`) or `nn` (the single nearest decides).
        every: epochs between evaluations.
        k, sigma: of the weighted vote.
        backend: of the search.
        key: the prefix of its results in metrics.jsonl, before `_top1` and `_top5`.
    """

    on_bank = True
    title, note = "kNN", ""  # its name in the log, and what follows an accuracy
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

    @classmethod
    def create(cls, name: str, options: Options, pipeline: Pipeline, world: World) -> "KNN":
        """Create the classifier, leave-one-out where there are no test images."""
        kind = LeaveOneOutKNN if pipeline.test is None else cls
        search = "auto" if options.knn_backend == "ivf" else options.knn_backend  # accuracies are exact in any case
        return kind(pipeline, world, name, options.eval_freq, options.knn_k, options.sigma, search)

    def with_key(self, key: str) -> "KNN":
        """A copy whose results have another prefix in metrics.jsonl."""
        other = copy.copy(self)
        other.key = key
        return other

    def obstacle(self) -> Optional[str]:
        if self.pipeline.labelled_test:
            return None
        return one_class(self.pipeline) or f"{self.pipeline.name} has no labelled test images to evaluate on"

    def evaluate(self, features: Features) -> Optional[Results]:
        """The accuracies; None if the data set has no labels."""
        if self.obstacle() is not None:
            return None
        accuracy = self.accuracy(features)
        scalars = {f"{self.key}_top1": accuracy.top1, f"{self.key}_top5": accuracy.top5}
        return Results(scalars, f"{accuracy}{self.note}")

    def accuracy(self, features: Features) -> Accuracy:
        """The accuracy on the test images."""
        train, test = self.pipeline.train, self.pipeline.test
        assert test is not None  # otherwise `create` takes LeaveOneOutKNN
        queries = features.all_test
        device = queries.device
        return weighted_knn(
            queries,
            torch.from_numpy(test.labels).to(device),
            features.train,
            torch.from_numpy(train.labels).to(device),
            len(train.classes),
            self.k,
            self.sigma,
            self.backend,
            Shard(self.world, len(train)),
        )


class LeaveOneOutKNN(KNN):
    """As `KNN`, leave-one-out: for data sets without test images, whose training images all or partly have labels.

    Training uses no labels, so the network has not seen the answers. It was trained on these images, however, and a
    near-duplicate may be among the neighbours. Images without a label are neither queries nor neighbours.
    """

    title, note = "leave-one-out kNN", " (leave-one-out)"
    described = "leave-one-out: each labelled training image by the labels of its nearest others"

    def obstacle(self) -> Optional[str]:
        if len(self._labelled()) >= 2:
            return None
        nothing = f"{self.pipeline.name} has no labelled test images, nor labelled training images to do without"
        return one_class(self.pipeline) or nothing

    def accuracy(self, features: Features) -> Accuracy:
        """The accuracy on sampled training images, each classified by all other labelled ones."""
        rows, train = features.train, self.pipeline.train  # (n, D), of this process
        everything, labelled = Shard(self.world, len(train)), self._labelled()
        shard = Shard.part_of(everything, labelled)
        here = labelled[shard.start : shard.stop] - everything.start
        database = rows[here.to(rows.device)]  # those with a label
        labels = torch.from_numpy(train.labels)[labelled].to(rows.device)
        sampled = sample_rows(len(labels), MOST_QUERIES)
        query_shard = Shard.part_of(shard, sampled)
        own = database[(sampled[query_shard.start : query_shard.stop] - shard.start).to(rows.device)]
        sampled = sampled.to(rows.device)
        return weighted_knn(
            self.world.gather_rows(own, query_shard.counts),
            labels[sampled],
            database,
            labels,
            len(train.classes),
            self.k,
            self.sigma,
            self.backend,
            shard,
            own=sampled,
        )

    def _labelled(self) -> torch.Tensor:
        """(L,) row numbers of the training images that have a label."""
        labels = self.pipeline.train.labels
        known = torch.empty(0) if labels is None else torch.from_numpy(labels)
        return torch.nonzero(known >= 0).flatten()
