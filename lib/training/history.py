"""What each round came to: kept in checkpoints, shown at the end."""

from dataclasses import asdict, dataclass
from typing import Any, Optional


@dataclass
class RoundSummary:
    """One line of the closing tables. Accuracies are shares of 1, None where nothing was evaluated; what needs no
    labels is as `Observer.after_epoch` found it after the last epoch that it looked at."""

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
        """Take in an epoch; returns whether it is the round's best so far (the earlier of equals stays)."""
        self.seconds += seconds
        if top1 is None:
            return False
        self.knn_last = top1
        if self.knn_best is not None and top1 <= self.knn_best:
            return False
        self.knn_best, self.best_epoch = top1, epoch
        return True


class History:
    """The rounds so far, in order."""

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
        """Take in what an epoch showed without labels; what it did not look at stays."""
        self.current.loss = loss
        for name, value in seen.items():
            if value is not None:
                setattr(self.current, name, value)

    def start_round(self, number: int, anchors: int, consistency: Optional[float]) -> None:
        self.rounds.append(RoundSummary(number, anchors, consistency))

    def state(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.rounds]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]]) -> "History":
        return cls([RoundSummary(**entry) for entry in state])

    def table(self, judge: str = "kNN") -> str:
        """Accuracies round by round, for a person; `judge` names them."""
        from prettytable import PrettyTable

        table = PrettyTable(["round", "anchors", "consistency", f"{judge} last", f"{judge} best", "seconds"])
        table.align = "r"
        for entry in self.rounds:
            best = _percent(entry.knn_best)
            if entry.best_epoch is not None:
                best += f" (epoch {entry.best_epoch})"
            accuracies = [_percent(entry.knn_last), best]
            table.add_row(
                [entry.round, entry.anchors, _percent(entry.consistency), *accuracies, f"{entry.seconds:.0f}"]
            )
        return table.get_string()

    def unlabelled_table(self) -> str:
        """What needs no labels, round by round, for a person."""
        from prettytable import PrettyTable

        columns = ("round", "anchors", "loss", "entropy", "anchors'", "kept", "cosine", "clusters", "seconds")
        table = PrettyTable(columns)
        table.align = "r"
        for entry in self.rounds:
            table.add_row(
                [
                    entry.round,
                    entry.anchors,
                    _number(entry.loss),
                    _number(entry.entropy),
                    _number(entry.anchor_entropy),
                    _percent(entry.neighbours_kept, 1),
                    _number(entry.neighbour_cosine),
                    "-" if entry.clusters is None else sizes(entry.clusters),
                    f"{entry.seconds:.0f}",
                ]
            )
        return table.get_string()


UNLABELLED_LEGEND = (
    "entropy: mean over all images, and over the round's anchors; kept: images whose nearest neighbour is that of the "
    "round before; cosine: mean to the nearest; clusters: how many, of what sizes"
)
"""Explains `History.unlabelled_table`."""


def sizes(clusters: list[int]) -> str:
    """`9 (12 to 80)`."""
    return f"{len(clusters)} ({min(clusters)} to {max(clusters)})"


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: Optional[float], digits: int = 2) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"
