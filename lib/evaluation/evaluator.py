"""Evaluation of a network by the protocols that `--protocol` names, and when each is due."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.config.registry import PROTOCOLS, find
from lib.distributed.world import World
from lib.errors import UserError
from lib.evaluation.features import PLAIN, Features, FeatureSpace
from lib.nn.embedder import Embedder

if TYPE_CHECKING:
    from lib.evaluation.knn import KNN


def _no_files(folder: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class Results:
    """The results of one protocol for one network.

    Attributes:
        scalars: numbers by their names in metrics.jsonl; accuracies are shares of 1.
        summary: the most important of them in one line.
        table: all of them for the terminal, several lines; empty if the summary has all.
        write: writes further files into a folder and returns their paths.
    """

    scalars: Mapping[str, Optional[float]]
    summary: str
    table: str = ""
    write: Callable[[Path], list[Path]] = field(default=_no_files, repr=False)


class Protocol(ABC):
    """An evaluation protocol. To add one, write a subclass in a file of its own and a line in `lib.config.registry`.

    Attributes:
        name: as `--protocol` names it.
        every: epochs of a round between evaluations while training, the last epoch of a round included; 0: none
            before the run is finished.
        on_bank: whether it evaluates the rows of the memory bank before the epoch's checkpoint is written, since it is
            quick. All others run afterwards.
    """

    name: str
    every: int
    on_bank = False

    @classmethod
    @abstractmethod
    def create(cls, name: str, options: Options, pipeline: Pipeline, world: World) -> "Protocol":
        """Create the protocol from the options of a run.

        Args:
            name: its name in the registry.
        """

    def obstacle(self) -> Optional[str]:
        """The reason why it cannot evaluate this data set, as the end of a message; None if it can."""
        return None

    @abstractmethod
    def evaluate(self, features: Features) -> Optional[Results]:
        """The results. All processes must call it; only those of the first process count, others may return None."""

    def has_results_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a line of metrics.jsonl has this protocol's results, whose names begin with its own."""
        return any(key.startswith(f"{self.name}_") for key in record)

    def due(self, epoch: int, last: int) -> bool:
        """Whether to evaluate after this epoch of a round of `last` epochs, both counted from 1."""
        return self.every > 0 and (epoch % self.every == 0 or epoch == last)


Evaluated = list[tuple[Protocol, Results]]
"""Protocols with their results, in the order of evaluation."""


class Evaluator:
    """Evaluates the networks of a run by the protocols in `--protocol`.

    The first kNN protocol determines the best epoch. kNN protocols evaluate the network's output, as
    published. Where --features or --whiten ask for other features, they evaluate those too, once, when the run is
    finished; `cluster` evaluates those alone. Without labels the finished network's neighbours are compared with those
    of pixels.

    Args:
        options: the merged options.
        pipeline: the images.
        world: the processes of the run.

    Attributes:
        space: the feature space of --features and --whiten.
        knn: the protocols that evaluate the bank after an epoch.
        feature_knn: the same on features of `space`; empty if that is the network's plain output.
        others: all other protocols.

    Raises:
        UserError: a protocol cannot be used with these images.
    """

    def __init__(self, options: Options, pipeline: Pipeline, world: World):
        self._pipeline, self._world, self._low_dim = pipeline, world, options.low_dim
        self.space = FeatureSpace(options.features, options.whiten)
        self._rounds, self._epochs = options.max_round, options.max_epoch
        self.knn: list[KNN] = []
        self.feature_knn: list[KNN] = []
        self.others: list[Protocol] = []
        for name in (name for name in PROTOCOLS if name in options.protocol):
            protocol = find(PROTOCOLS, name).create(name, options, pipeline, world)
            if not protocol.on_bank:
                self.others.append(protocol)
                continue
            if not self.knn:
                protocol.key = "knn"  # its accuracy determines the best epoch, whichever protocol it is
            self.knn.append(protocol)
            if not self.space.is_plain:
                self.feature_knn.append(protocol.with_key(f"{protocol.key}_features"))
        if not self.has_knn:
            from lib.evaluation.baselines import PixelNeighbours

            if PixelNeighbours.measurable(pipeline):
                self.others.append(PixelNeighbours(pipeline, world, options.size))
        for protocol in self.others:
            _check(protocol)

    @property
    def has_knn(self) -> bool:
        """Whether there are labels by which a kNN protocol can evaluate an epoch."""
        return any(protocol.obstacle() is None for protocol in self.knn)

    @property
    def title(self) -> str:
        """The name in the log of the protocol that evaluates epochs."""
        return self.knn[0].title if self.knn else "kNN"

    @property
    def described(self) -> str:
        """A description of that protocol in one line."""
        return self.knn[0].described if self.knn else ""

    def knn_accuracy(self, results: Evaluated) -> Optional[tuple[float, Optional[float]]]:
        """Top-1 and top-5 of the protocol that evaluates epochs, as shares of 1; None if it has no results."""
        return _first(self.knn, results)

    def knn_feature_accuracy(self, results: Evaluated) -> Optional[tuple[float, Optional[float]]]:
        """The same on features of `space`; None also where that is the network's plain output."""
        return _first(self.feature_knn, results)

    def check_all(self) -> None:
        """Check that every protocol can be used, kNN too, which a training run without labels does without.

        Raises:
            UserError: one cannot.
        """
        for protocol in (*self.knn, *self.others):
            _check(protocol)

    def evaluate_bank(self, embedder: Embedder, memory: Tensor, epoch: int) -> dict[str, Optional[float]]:
        """The kNN accuracies that are due after an epoch, by their names in metrics.jsonl.

        Args:
            memory: this process's rows of the memory bank, used as the training features.
            epoch: of the round, counted from 1.
        """
        features = self._features(embedder, PLAIN, memory)
        scalars: dict[str, Optional[float]] = {}
        for protocol in self.knn:
            results = protocol.evaluate(features) if protocol.due(epoch, self._epochs) else None
            scalars.update({} if results is None else results.scalars)
        return scalars

    def due(self, round_number: int, epoch: int) -> list[Protocol]:
        """The other protocols that are due after an epoch; none after the run's last, see `evaluate_finished`."""
        if (round_number + 1, epoch) == (self._rounds, self._epochs):
            return []
        return [protocol for protocol in self.others if protocol.due(epoch, self._epochs)]

    def evaluate(self, protocols: Sequence[Protocol], embedder: Embedder) -> Evaluated:
        """The results of some of the other protocols. Every feature is recomputed, once for all of them."""
        return self._evaluate(protocols, self._features(embedder, self.space))

    def evaluate_finished(self, embedder: Embedder) -> tuple[Evaluated, Features]:
        """All results for a finished network, and its features of `space`. Every feature is recomputed."""
        features = self._features(embedder, PLAIN)
        results = self._evaluate(self.knn, features)
        if not self.space.is_plain:
            features = self._features(embedder, self.space)
        return results + self._evaluate([*self.feature_knn, *self.others], features), features

    def _evaluate(self, protocols: Sequence[Protocol], features: Features) -> Evaluated:
        evaluated = []
        for protocol in protocols:
            results = protocol.evaluate(features)
            self._world.long_barrier()  # the first process alone may cluster for hours
            if results is None:
                continue
            if not features.space.is_plain and protocol.name != "linear":  # which takes activations, not features
                results = replace(results, summary=f"features: {features.space}: {results.summary}")
            evaluated.append((protocol, results))
        return evaluated

    def _features(self, embedder: Embedder, space: FeatureSpace, memory: Optional[Tensor] = None) -> Features:
        dim = space.dim(embedder.network, self._low_dim)
        return Features(embedder, self._pipeline, self._world, dim, memory, space)


def _first(protocols: "Sequence[KNN]", evaluated: Evaluated) -> Optional[tuple[float, Optional[float]]]:
    for protocol, results in evaluated:
        if protocols and protocol is protocols[0]:
            top1, top5 = (results.scalars[f"{protocols[0].key}_{which}"] for which in ("top1", "top5"))
            return None if top1 is None else (top1, top5)
    return None


def _check(protocol: Protocol) -> None:
    obstacle = protocol.obstacle()
    if obstacle is not None:
        other = "" if protocol.name == "cluster" else "; --protocol cluster needs no labels"
        raise UserError(f"--protocol {protocol.name}: {obstacle}{other}")
