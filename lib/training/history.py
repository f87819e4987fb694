"""The history of a run: diagnostics of the bank after an epoch, a summary of each round, and the closing tables."""

from dataclasses import dataclass, field
from typing import Any, Optional

from torch import Tensor

from lib.errors import given
from lib.evaluation.bank_statistics import BankStatistics, bank_statistics
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT

_LABEL_FREE = ("entropy", "anchor_entropy", "neighbours_kept", "neighbour_cosine", "clusters")
"""The diagnostics of an epoch, by their names in metrics.jsonl. They need no labels."""


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of the bank after an epoch. They need no labels.

    Attributes:
        values: by their names in metrics.jsonl; None after an epoch that is not evaluated. entropy, anchor_entropy:
            mean over all images and over the round's anchors, in nats. neighbours_kept: share of images whose nearest
            neighbour is that of the end of the round before. neighbour_cosine: mean cosine to the nearest neighbour.
            clusters: their sizes, after the last epoch of a round.
        survey: entropy and nearest neighbour of each sampled row; None after an epoch that is not evaluated.
        clusters: (S,) the cluster of each sampled row on the CPU, after the last epoch of a round. Only the first
            process has them.
        clustering: the clusters of the round that has ended, as its checkpoint keeps them (`Clusters.state`).
    """

    values: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(_LABEL_FREE))
    survey: Optional[BankStatistics] = None
    clusters: Optional[Tensor] = None
    clustering: dict[str, Any] = field(default_factory=dict)


def diagnose(
    bank: MemoryBank,
    neighbourhoods: Neighbourhoods,
    before: Optional[Tensor],
    rows: Tensor,
    temperature: float,
    seed: int,
    number: Optional[str] = None,
) -> Diagnostics:
    """Compute entropy, nearest neighbours and clusters of the sampled rows. All processes must call it.

    Args:
        neighbourhoods: of the round.
        before: (S,) the nearest neighbours at the end of the round before, or None.
        rows: (S,) the sampled rows, as `sample_rows` gives them.
        temperature: tau.
        seed: of the clusters.
        number: --num-clusters; None: the round has not ended, and no clusters are computed.
    """
    found = bank_statistics(bank.memory, rows, temperature, bank.shard)
    anchors = neighbourhoods.position[found.rows] != ABSENT
    values: dict[str, Any] = {
        "entropy": found.entropy.mean().item(),
        "anchor_entropy": found.entropy[anchors].mean().item() if anchors.any() else None,
        "neighbours_kept": found.kept(before),
        "neighbour_cosine": found.cosine.mean().item(),
        "clusters": None,
    }
    if number is None or not bank.shard.world.is_first:
        return Diagnostics(values, found)
    from lib.clustering.clusters import round_clusters  # scikit-learn takes a second to import

    features = found.features.cpu()
    clusters = round_clusters(features, len(bank), number, seed)
    if clusters is None:
        return Diagnostics(values, found)
    values["clusters"] = clusters.sizes(features)
    return Diagnostics(values, found, clusters.assign(features), clusters.state())


@dataclass
class RoundSummary:
    """The summary of a round for the closing tables.

    Accuracies are shares of 1, None where nothing was evaluated. Diagnostics are of the last epoch that was evaluated.
    """

    round: int
    anchors: int
    consistency: Optional[float] = None
    knn_last: Optional[float] = None
    knn_best: Optional[float] = None
    best_epoch: Optional[int] = None
    seconds: float = 0.0
    loss: Optional[float] = None
    entropy: Optional[float] = None
    anchor_entropy: Optional[float] = None
    neighbours_kept: Optional[float] = None
    neighbour_cosine: Optional[float] = None
    clusters: Optional[list[int]] = None

    def add_epoch(self, epoch: int, top1: Optional[float], seconds: float) -> bool:
        """Add an epoch; returns whether it is the best of the round so far. Of equals the earlier one stays."""
        self.seconds += seconds
        if top1 is None:
            return False
        self.knn_last = top1
        if self.knn_best is not None and top1 <= self.knn_best:
            return False
        self.knn_best, self.best_epoch = top1, epoch
        return True

    def closing_line(self, vote: str) -> str:
        """The round in one line; `vote` names the accuracy."""
        parts = [f"{self.anchors} anchors"]
        if self.consistency is not None:
            parts.append(f"consistency {100 * self.consistency:.2f} %")
        if self.knn_last is not None:
            parts.append(f"{vote} {100 * self.knn_last:.2f} % last, {100 * given(self.knn_best):.2f} % best")
        parts.append(f"loss {self.loss:.3f}")
        if self.entropy is not None:
            parts.append(f"entropy {self.entropy:.3f}")
        if self.neighbours_kept is not None:
            parts.append(f"{100 * self.neighbours_kept:.1f} % kept their neighbour")
        if self.neighbour_cosine is not None:
            parts.append(f"cosine {self.neighbour_cosine:.3f}")
        if self.clusters is not None:
            parts.append(f"clusters {sizes(self.clusters)}")
        return f"round {self.round} done: {', '.join(parts)}, {self.seconds:.0f} s"


class History:
    """The summaries of the rounds so far, in order."""

    def __init__(self, rounds: Optional[list[RoundSummary]] = None):
        self.rounds = rounds or []

    @property
    def current(self) -> RoundSummary:
        return self.rounds[-1]

    @property
    def best_top1(self) -> Optional[float]:
        """The best accuracy of any epoch of any round."""
        return max((entry.knn_best for entry in self.rounds if entry.knn_best is not None), default=None)

    def observe(self, loss: float, seen: dict[str, Any]) -> None:
        """Set the loss and the diagnostics of the last epoch; those that are None stay as they were."""
        self.current.loss = loss
        for name, value in seen.items():
            if value is not None:
                setattr(self.current, name, value)

    def start_round(self, number: int, anchors: int, consistency: Optional[float]) -> None:
        self.rounds.append(RoundSummary(number, anchors, consistency))

    def table(
        self, baselines: dict[str, float], width: Optional[int] = None, finished: Optional[tuple[str, float]] = None
    ) -> str:
        """The table of accuracies by round; in fewer columns where `width` characters are too few for all.

        Args:
            baselines: top-1 without learning, by name; the first rows.
            finished: name and top-1 of the finished network's features of --features and --whiten; the last row.
        """
        empty = dict.fromkeys(("anchors", "consistency", "kNN last", "kNN best", "seconds"), "")
        rows = [{"round": name, **empty, "kNN last": _percent(top1)} for name, top1 in baselines.items()]
        rows += [
            {
                "round": str(entry.round),
                "anchors": str(entry.anchors),
                "consistency": _percent(entry.consistency),
                "kNN last": _percent(entry.knn_last),
                "kNN best": _percent(entry.knn_best)
                + ("" if entry.best_epoch is None else f" (epoch {entry.best_epoch})"),
                "seconds": f"{entry.seconds:.0f}",
            }
            for entry in self.rounds
        ]
        if finished is not None:
            rows.append({"round": finished[0], **empty, "kNN last": _percent(finished[1])})
        return _table(rows, ("kNN best", "seconds", "anchors"), width)

    def unlabelled_table(self, width: Optional[int] = None) -> str:
        """The table of diagnostics by round, as `table`."""
        rows = [
            {
                "round": str(entry.round),
                "anchors": str(entry.anchors),
                "loss": _number(entry.loss),
                "entropy": _number(entry.entropy),
                "anchors'": _number(entry.anchor_entropy),
                "kept": _percent(entry.neighbours_kept, 1),
                "cosine": _number(entry.neighbour_cosine),
                "clusters": "-" if entry.clusters is None else sizes(entry.clusters),
                "seconds": f"{entry.seconds:.0f}",
            }
            for entry in self.rounds
        ]
        return _table(rows, ("anchors'", "seconds", "anchors", "clusters", "cosine"), width)


def _table(rows: list[dict[str, str]], least: tuple[str, ...], width: Optional[int]) -> str:
    """A table of rows with the same columns; where it is too wide, columns are dropped in the order of `least`."""
    from prettytable import PrettyTable

    columns = list(rows[0]) if rows else []
    for dropped in (None, *least):
        columns = [column for column in columns if column != dropped]
        table = PrettyTable(columns)
        table.align = "r"
        for row in rows:
            table.add_row([row[column] for column in columns])
        text = table.get_string()
        if width is None or len(text.split("\n", 1)[0]) <= width:
            break
    return text


UNLABELLED_LEGEND = (
    "entropy: mean over all images, and over the round's anchors; kept: images whose nearest neighbour is that of the "
    "round before; cosine: mean to the nearest; clusters: how many, of what sizes (-: too few images to tell)"
)
"""Explains `History.unlabelled_table`."""


def sizes(clusters: list[int]) -> str:
    """`9 (12 to 80)`: how many, and their sizes; `1 (all 500)` where no number of clusters stands out."""
    if len(clusters) == 1:
        return f"1 (all {clusters[0]})"
    return f"{len(clusters)} ({min(clusters)} to {max(clusters)})"


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: Optional[float], digits: int = 2) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"
