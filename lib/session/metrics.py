"""The metrics of a run: a line of metrics.jsonl for each epoch, summaries of rounds made from them, and their tables.

Written and read without PyTorch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from lib.runtime.atomic import append_line, replace_text, writing

DIAGNOSTICS = ("entropy", "anchor_entropy", "neighbours_kept", "neighbour_cosine", "clusters")
"""Keys of the diagnostics of the memory bank (`lib.evaluation.bank_statistics`); None where not evaluated."""


class Metrics:
    """metrics.jsonl: a JSON object on a line for each epoch, in order.

    Resuming from an earlier epoch moves the lines of later ones to metrics.superseded.jsonl.
    """

    def __init__(self, path: Path):
        self.path = path

    def _lines(self) -> list[str]:
        return [line for _, line in _complete_lines(self.path)] if self.path.exists() else []

    def append(self, record: dict[str, Any]) -> None:
        """Add a line and flush it to the disk.

        Raises:
            RunError: it cannot be written.
        """
        append_line(self.path, json.dumps(record))

    def last(self) -> dict[str, Any]:
        """The last line, empty if there is none."""
        lines = self._lines()
        return json.loads(lines[-1]) if lines else {}

    def amend_last(self, values: Mapping[str, Any]) -> None:
        """Add values to the last line, or replace those it has: results that came after the line was written.

        Raises:
            RunError: it cannot be written.
        """
        lines = self._lines()
        if not lines:
            return
        lines[-1] = json.dumps({**json.loads(lines[-1]), **values})
        replace_text(self.path, "".join(line + "\n" for line in lines))

    def rewind(self, round_number: int, epoch: int) -> None:
        """Discard the lines after (round, epoch), and lines that are not records of epochs.

        Raises:
            RunError: writing fails.
        """
        if not self.path.exists():
            return
        kept: list[str] = []
        superseded: list[str] = []
        for line in self._lines():
            position = _position(line)
            is_kept = position is not None and position <= (round_number, epoch)
            (kept if is_kept else superseded).append(line + "\n")
        if superseded:
            aside = self.path.with_name("metrics.superseded.jsonl")
            with writing(aside), open(aside, "a", encoding="utf-8") as file:
                file.writelines(superseded)
        replace_text(self.path, "".join(kept))


def _position(line: str) -> Optional[tuple[int, int]]:
    """Round and epoch of a line; None if it has none: the file may be damaged."""
    try:
        record = json.loads(line)
        return int(record["round"]), int(record["epoch"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one on each line; none without a file. A last line cut off by a kill is left out.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in _complete_lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        records.append(record)
    return records


def _complete_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that end in a line break and are not blank, with their numbers from 1."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


@dataclass
class Round:
    """A summary of one round, from its epochs in metrics.jsonl. Checkpoints contain it.

    Accuracies are shares of 1, None where nothing was evaluated. Diagnostics are of the last epoch that was evaluated.

    Attributes:
        round: its number.
        seconds: time of its epochs, evaluation included; in the run itself also that of discovery.
        clusters: their sizes.
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

    def add(self, epoch: Mapping[str, Any]) -> bool:
        """Add an epoch by its line; returns whether it is the best of the round so far, the earlier among equals."""
        self.seconds += epoch["seconds"]
        self.loss = epoch["loss"]
        for name in DIAGNOSTICS:
            if epoch.get(name) is not None:
                setattr(self, name, epoch[name])
        top1 = epoch["knn_top1"]
        if top1 is None:
            return False
        self.knn_last = top1
        if self.knn_best is not None and top1 <= self.knn_best:
            return False
        self.knn_best, self.best_epoch = top1, epoch["epoch"]
        return True

    def closing_line(self, classifier: str) -> str:
        """The round in one line; `classifier` names the accuracy."""
        parts = [f"{self.anchors} anchors"]
        if self.consistency is not None:
            parts.append(f"consistency {percent_text(self.consistency)}")
        if self.knn_last is not None:
            parts.append(f"{classifier} {percent_text(self.knn_last)} last, {percent_text(self.knn_best)} best")
        parts.append(f"loss {self.loss:.3f}")
        if self.entropy is not None:
            parts.append(f"entropy {self.entropy:.3f}")
        if self.neighbours_kept is not None:
            parts.append(f"{percent_text(self.neighbours_kept, 1)} kept their neighbour")
        if self.neighbour_cosine is not None:
            parts.append(f"cosine {self.neighbour_cosine:.3f}")
        if self.clusters is not None:
            parts.append(f"clusters {sizes(self.clusters)}")
        return f"round {self.round} done: {', '.join(parts)}, {self.seconds:.0f} s"


class History:
    """The rounds that have begun, in order."""

    def __init__(self, rounds: Optional[list[Round]] = None):
        self.rounds = rounds or []

    @classmethod
    def of(cls, epochs: Iterable[Mapping[str, Any]]) -> "History":
        """The rounds of the lines of metrics.jsonl."""
        history = cls()
        for epoch in epochs:
            if not history.rounds or history.current.round != epoch["round"]:
                history.start_round(epoch["round"], epoch["anchors"], epoch["consistency"])
            history.current.add(epoch)
        return history

    @property
    def current(self) -> Round:
        return self.rounds[-1]

    @property
    def best_top1(self) -> Optional[float]:
        """The best accuracy of any epoch of any round."""
        return max((entry.knn_best for entry in self.rounds if entry.knn_best is not None), default=None)

    def start_round(self, number: int, anchors: int, consistency: Optional[float], seconds: float = 0.0) -> None:
        """Begin a round; `seconds`: what its discovery took."""
        self.rounds.append(Round(number, anchors, consistency, seconds=seconds))

    def table(
        self, baselines: dict[str, float], width: Optional[int] = None, finished: Optional[tuple[str, float]] = None
    ) -> str:
        """The table of accuracies by round; in fewer columns where `width` characters are too few for all.

        Args:
            baselines: top-1 without learning, by name; the first rows.
            finished: name and top-1 of the finished network's features of --features and --whiten; the last row.
        """
        empty = dict.fromkeys(("anchors", "consistency", "kNN last", "kNN best", "seconds"), "")
        rows = [{"round": name, **empty, "kNN last": percent_text(top1)} for name, top1 in baselines.items()]
        rows += [
            {
                "round": str(entry.round),
                "anchors": str(entry.anchors),
                "consistency": percent_text(entry.consistency),
                "kNN last": percent_text(entry.knn_last),
                "kNN best": percent_text(entry.knn_best)
                + ("" if entry.best_epoch is None else f" (epoch {entry.best_epoch})"),
                "seconds": f"{entry.seconds:.0f}",
            }
            for entry in self.rounds
        ]
        if finished is not None:
            rows.append({"round": finished[0], **empty, "kNN last": percent_text(finished[1])})
        return _table(rows, ("kNN best", "seconds", "anchors"), width)

    def diagnostics_table(self, width: Optional[int] = None) -> str:
        """The table of diagnostics by round, as `table`."""
        rows = [
            {
                "round": str(entry.round),
                "anchors": str(entry.anchors),
                "loss": _number(entry.loss),
                "entropy": _number(entry.entropy),
                "anchors'": _number(entry.anchor_entropy),
                "kept": percent_text(entry.neighbours_kept, 1),
                "cosine": _number(entry.neighbour_cosine),
                "clusters": "-" if entry.clusters is None else sizes(entry.clusters),
                "seconds": f"{entry.seconds:.0f}",
            }
            for entry in self.rounds
        ]
        return _table(rows, ("anchors'", "seconds", "anchors", "clusters", "cosine"), width)


def _table(rows: list[dict[str, str]], droppable: tuple[str, ...], width: Optional[int]) -> str:
    """A table of rows with the same columns; where it is too wide, the columns in `droppable` are dropped in order."""
    from prettytable import PrettyTable

    columns = list(rows[0]) if rows else []
    for dropped in (None, *droppable):
        columns = [column for column in columns if column != dropped]
        table = PrettyTable(columns)
        table.align = "r"
        for row in rows:
            table.add_row([row[column] for column in columns])
        text = table.get_string()
        if width is None or len(text.split("\n", 1)[0]) <= width:
            break
    return text


DIAGNOSTICS_LEGEND = (
    "entropy: mean over all images, and over the round's anchors; kept: images whose nearest neighbour is that of the "
    "round before; cosine: mean to the nearest; clusters: how many, of what sizes (-: too few images)"
)
"""Explains `History.diagnostics_table`."""


def sizes(clusters: list[int]) -> str:
    """`9 (12 to 80)`: how many, and their sizes; `1 (all 500)` where no number of clusters stands out."""
    if len(clusters) == 1:
        return f"1 (all {clusters[0]})"
    return f"{len(clusters)} ({min(clusters)} to {max(clusters)})"


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def percent_text(share: Optional[float], digits: int = 2) -> str:
    """A share of 1 in per cent; a hyphen for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"
