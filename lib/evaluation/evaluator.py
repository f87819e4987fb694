"""The protocols that `--protocol` names, and when each has its turn."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError
from lib.evaluation.features import PLAIN, FeatureSpace, Subject
from lib.nn.embedder import Embedder

if TYPE_CHECKING:
    from lib.evaluation.knn import Voting


def _no_files(folder: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class Findings:
    """What a protocol found out about a network.

    Attributes:
        scalars: numbers by their names in metrics.jsonl; accuracies are shares of 1.
        summary: the most important of them in one line.
        table: all of them for a person, several lines; empty if the summary says it all.
        write: writes files with more into a folder and returns their paths.
    """

    scalars: Mapping[str, Optional[float]]
    summary: str
    table: str = ""
    write: Callable[[Path], list[Path]] = field(default=_no_files, repr=False)


class Protocol(ABC):
    """One way of judging a network.

    Attributes:
        name: as `--protocol` names it.
        every: epochs of a round between evaluations while training, the last epoch of a round included; 0: none
            before the run is finished.
    """

    name: str
    every: int

    def obstacle(self) -> Optional[str]:
        """Why this data set cannot be judged so, in words that go on `--protocol NAME: `; None if it can."""
        return None

    @abstractmethod
    def judge(self, subject: Subject) -> Optional[Findings]:
        """The findings. All processes must call it; only the first one's answer counts, others may give None."""

    def is_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a line of metrics.jsonl has this protocol's findings, whose names begin with its own."""
        return any(key.startswith(f"{self.name}_") for key in record)

    def due(self, epoch: int, last: int) -> bool:
        """Whether to judge after this epoch of a round of `last` epochs, both counted from 1."""
        return self.every > 0 and (epoch % self.every == 0 or epoch == last)


Judged = list[tuple[Protocol, Findings]]


class Protocols:
    """All that judge the networks of a run.

    `knn` and `nn` are quick: they belong to an epoch, and the first of them decides which epoch is the best. Others
    may take long and have their turn when the epoch is safely on disk.

    `knn` and `nn` look at the network's output, as published. Where --features or --whiten ask for other features,
    these votes are held a second time, on those, when the network is finished; `cluster` looks at those alone.

    Args:
        options: the merged options.
        pipeline: the images.
        world: the processes of the run.

    Attributes:
        space: what --features and --whiten ask for.
        votes, feature_votes, others: the protocols; `feature_votes` are the votes on features of `space`, if that is
            not the network's output as it is.

    Raises:
        UserError: a protocol that was asked for cannot be used with these images.
    """

    def __init__(self, options: Options, pipeline: Pipeline, world: World):
        self._pipeline, self._world, self._low_dim = pipeline, world, options.low_dim
        self.space = FeatureSpace(options.features, options.whiten)
        self._rounds, self._epochs = options.max_round, options.max_epoch
        from lib.evaluation.knn import LeaveOneOut, Voting

        names = tuple(dict.fromkeys(options.protocol))
        search = "auto" if options.knn_backend == "ivf" else options.knn_backend  # accuracies are exact in any case
        votes = [name for name in ("knn", "nn") if name in names]
        kind = LeaveOneOut if pipeline.test is None else Voting

        def vote(name: str, suffix: str) -> "Voting":
            key = ("knn" if name == votes[0] else name) + suffix
            return kind(pipeline, world, name, options.eval_freq, options.knn_k, options.sigma, search, key=key)

        self.votes = [vote(name, "") for name in votes]
        self.feature_votes = [] if self.space.is_plain else [vote(name, "_features") for name in votes]
        self.others: list[Protocol] = []
        # loaded only where they are asked for: scikit-learn takes a second
        if "linear" in names:
            from lib.evaluation.linear import Linear

            self.others.append(Linear(pipeline, world, options.linear_freq, options.seed, options.size))
        if "cluster" in names:
            from lib.evaluation.clusters import Cluster

            self.others.append(Cluster(pipeline, world, options.cluster_freq, options.num_clusters, options.seed))
        for protocol in self.others:
            _check(protocol)

    @property
    def can_vote(self) -> bool:
        """Whether the nearest images' labels can judge an epoch."""
        return any(vote.obstacle() is None for vote in self.votes)

    @property
    def title(self) -> str:
        """What the log calls the vote that judges epochs."""
        from lib.evaluation.knn import Voting

        return self.votes[0].title if self.votes else Voting.title

    @property
    def described(self) -> str:
        """How that vote goes, in one line."""
        from lib.evaluation.knn import Voting

        return self.votes[0].described if self.votes else Voting.described

    def first_vote(self, judged: Judged) -> Optional[tuple[float, float]]:
        """Top-1 and top-5 of the vote that judges epochs, as shares of 1; None if it found nothing."""
        return _first(self.votes, judged)

    def first_feature_vote(self, judged: Judged) -> Optional[tuple[float, float]]:
        """The same of that vote on features of `space`; None, too, where that is the network's output as it is."""
        return _first(self.feature_votes, judged)

    def check_all(self) -> None:
        """Whether everything asked for can be judged, kNN too, which a training run without labels does without.

        Raises:
            UserError: something cannot.
        """
        for protocol in (*self.votes, *self.others):
            _check(protocol)

    def with_bank(self, embedder: Embedder, memory: Tensor, epoch: int) -> dict[str, Optional[float]]:
        """The votes that are due after an epoch, by their names in metrics.jsonl.

        Args:
            memory: the rows of this process in the memory bank, which stand for the training features.
            epoch: of the round, counted from 1.
        """
        subject = self._subject(embedder, PLAIN, memory)
        scalars: dict[str, Optional[float]] = {}
        for vote in self.votes:
            found = vote.judge(subject) if vote.due(epoch, self._epochs) else None
            scalars.update({} if found is None else found.scalars)
        return scalars

    def due(self, round_number: int, epoch: int) -> list[Protocol]:
        """Of the others those that judge after an epoch; none after the last of the run, which `finished` is for."""
        if (round_number + 1, epoch) == (self._rounds, self._epochs):
            return []
        return [protocol for protocol in self.others if protocol.due(epoch, self._epochs)]

    def finished(self, embedder: Embedder) -> tuple[Judged, Subject]:
        """What all find about a finished network, and its features of `space`. Every feature is computed anew."""
        subject = self._subject(embedder, PLAIN)
        judged = _judged(self.votes, subject)
        if not self.space.is_plain:
            subject = self._subject(embedder, self.space)
        return judged + _judged([*self.feature_votes, *self.others], subject), subject

    def judged(self, protocols: Sequence[Protocol], embedder: Embedder) -> Judged:
        """What these find, which are among the others. Every feature is computed anew, once for all of them."""
        return _judged(protocols, self._subject(embedder, self.space))

    def _subject(self, embedder: Embedder, space: FeatureSpace, memory: Optional[Tensor] = None) -> Subject:
        dim = space.dim(embedder.network, self._low_dim)
        return Subject(embedder, self._pipeline, self._world, dim, memory, space)


def _judged(protocols: Sequence[Protocol], subject: Subject) -> Judged:
    judged = []
    for protocol in protocols:
        findings = protocol.judge(subject)
        if findings is None:
            continue
        if not subject.space.is_plain and protocol.name != "linear":  # which looks at activations
            findings = replace(findings, summary=f"features: {subject.space}: {findings.summary}")
        judged.append((protocol, findings))
    return judged


def _first(votes: Sequence["Voting"], judged: Judged) -> Optional[tuple[float, float]]:
    for protocol, findings in judged:
        if votes and protocol is votes[0]:
            return findings.scalars[f"{votes[0].key}_top1"], findings.scalars[f"{votes[0].key}_top5"]
    return None


def _check(protocol: Protocol) -> None:
    obstacle = protocol.obstacle()
    if obstacle is not None:
        other = "" if protocol.name == "cluster" else "; --protocol cluster needs no labels"
        raise UserError(f"--protocol {protocol.name}: {obstacle}{other}")
