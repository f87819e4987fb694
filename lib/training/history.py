"""What each round came to: kept in checkpoints, shown at the end."""

from dataclasses import asdict, dataclass
from typing import Any, Optional


@dataclass
class RoundSummary:
    """One line of the closing table. Accuracies are shares of 1, None where nothing was evaluated."""

    round: int
    anchors: int
    consistency: Optional[float] = None
    knn_last: Optional[float] = None
    knn_best: Optional[float] = None
    best_epoch: Optional[int] = None
    seconds: float = 0.0

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

    def start_round(self, number: int, anchors: int, consistency: Optional[float]) -> None:
        self.rounds.append(RoundSummary(number, anchors, consistency))

    def state(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.rounds]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]]) -> "History":
        return cls([RoundSummary(**entry) for entry in state])

    def table(self) -> str:
        """Round by round, for a person."""
        from prettytable import PrettyTable

        table = PrettyTable(["round", "anchors", "consistency", "kNN last", "kNN best", "seconds"])
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


def _percent(share: Optional[float]) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
