"""The records of a session, written and read without PyTorch: metrics.jsonl, starts.jsonl, final.json, config.yaml."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Optional

from lib.config import OPTIONS, Options, of_older_version
from lib.config.parsing import from_text
from lib.config.yaml_file import read as read_yaml
from lib.errors import UserError
from lib.runtime.atomic import append_line, replace_text, writing
from lib.session.folder import SessionFolder

_BY_NAME = {option.name: option for option in OPTIONS}
_DEFAULTS = Options()
_REQUIRED = {"round", "epoch", "anchors", "consistency", "loss", "lr", "knn_top1", "seconds"}
_OF_PROTOCOLS = ("knn_features_", "nn_", "linear_", "cluster_", "rankme_")  # beginnings of the names of results
_SHARES = ("top1", "top5", "accuracy", "confidence")  # ends of the names of those between 0 and 1
_COUNTED_BY = ("first_round", "max_round", "max_epoch", "ANs_size")  # options without which epochs cannot be counted


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
        """Discard the lines after (round, epoch), and lines that are no records of epochs.

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


def append_start(path: Path, record: dict[str, Any]) -> None:
    """Add a line to starts.jsonl; `record` is `lib.commands.train.start_record`'s.

    Raises:
        RunError: it cannot be written.
    """
    append_line(path, json.dumps(record))


def write_final(
    path: Path,
    round_number: int,
    epoch: int,
    top1: float,
    top5: Optional[float],
    baselines: dict[str, float],
    features: Optional[dict[str, Any]] = None,
) -> None:
    """Write final.json: accuracies of the finished network, in [0, 1], with the features of all training images
    recomputed.

    Args:
        round_number, epoch: the position at which it was finished.
        baselines: top-1 without learning, by name.
        features: `level`, `whitened`, `top1` and `top5` by the features of --features and --whiten, where these are not
            the network's plain output.

    Raises:
        RunError: it cannot be written.
    """
    final = {"round": round_number, "epoch": epoch, "top1": top1, "top5": top5, "baselines": baselines}
    if features is not None:
        final["features"] = features
    replace_text(path, json.dumps(final) + "\n")


def read_final(path: Path, round_number: int, epoch: int) -> Optional[dict[str, Any]]:
    """The content of final.json; None without one, or if the run has been trained further since.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        final = json.loads(path.read_text(encoding="utf-8"))
        return final if (final["round"], final["epoch"]) == (round_number, epoch) else None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not what a run writes there; remove it") from None


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


@dataclass(frozen=True)
class RoundRecord:
    """A round, from its lines in metrics.jsonl. Accuracies are in [0, 1]; None where nothing was measured."""

    number: int
    epochs: list[dict[str, Any]]
    neighbours: int
    """Neighbours of an anchor, k."""

    @property
    def last(self) -> dict[str, Any]:
        """The line of the last epoch."""
        return self.epochs[-1]

    def latest(self, key: str) -> Any:
        """The last value of a key that not every epoch has; None if none has it."""
        return _latest(self.epochs, key)

    @property
    def anchors(self) -> int:
        return self.last["anchors"]

    @property
    def consistency(self) -> Optional[float]:
        return self.last["consistency"]

    @property
    def pairs(self) -> int:
        """The number of (anchor, neighbour) pairs."""
        return self.anchors * self.neighbours

    @property
    def consistent(self) -> Optional[int]:
        """The number of pairs with equal labels. It is exact if all images have a label."""
        return None if self.consistency is None else round(self.consistency * self.pairs)

    @property
    def loss(self) -> float:
        return self.last["loss"]

    @property
    def knn_last(self) -> Optional[float]:
        """The kNN accuracy of the last epoch that was evaluated."""
        return self.latest("knn_top1")

    @property
    def best(self) -> Optional[dict[str, Any]]:
        """The line of the best epoch, the earlier among equals."""
        evaluated = [epoch for epoch in self.epochs if epoch["knn_top1"] is not None]
        return max(evaluated, key=lambda epoch: epoch["knn_top1"]) if evaluated else None

    @property
    def seconds(self) -> float:
        """The time of its epochs, evaluation included."""
        return sum(epoch["seconds"] for epoch in self.epochs)


@dataclass(frozen=True)
class SessionRecord:
    """A session, from its records."""

    folder: SessionFolder
    options: dict[str, Any]
    """By name, as in `Options`; those that this version does not know keep the text of the file."""
    epochs: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    starts: list[dict[str, Any]]
    """The lines of starts.jsonl, one for each time the run was started or resumed."""
    final: Optional[dict[str, Any]] = None
    """final.json of the finished network, see `write_final`."""

    @classmethod
    def read(cls, path: Path, asked_by: str) -> "SessionRecord":
        """Read a session folder.

        Args:
            asked_by: the option that named it, for messages.

        Raises:
            UserError: it is no session, or one of its files is damaged.
        """
        folder = SessionFolder(path)
        if not folder.config.is_file():
            what = "there is no such folder" if not path.is_dir() else "it has no config.yaml"
            raise UserError(f"{asked_by} {path}: not a session: {what}; name a folder such as sessions/20260101-120000")
        try:
            epochs, starts = read_lines(folder.metrics), read_lines(folder.starts)
            for number, epoch in enumerate(epochs, 1):
                if not epoch.keys() >= _REQUIRED:
                    lacking = ", ".join(sorted(_REQUIRED - epoch.keys()))
                    raise ValueError(f"line {number} of {folder.metrics} has no {lacking}")
            final = read_final(folder.final, epochs[-1]["round"], epochs[-1]["epoch"]) if epochs else None
            options = _options(folder.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{asked_by} {path}: it is damaged: {error}") from None
        return cls(folder, options, epochs, starts, final)

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    @property
    def rounds(self) -> list[RoundRecord]:
        """The rounds that have begun, in order."""
        k = self.value("ANs_size")
        return [
            RoundRecord(number, list(lines), k) for number, lines in groupby(self.epochs, lambda line: line["round"])
        ]

    def value(self, name: str) -> Any:
        """The value of an option. One that config.yaml lacks has the value in effect in the version that wrote
        it, else the default; None for a name that is no option."""
        older = of_older_version(self.options)
        return self.options.get(name, older.get(name, getattr(_DEFAULTS, name, None)))

    @property
    def evaluated_by(self) -> str:
        """The classifier that evaluated the epochs: `kNN` or `1-NN`."""
        protocol = self.value("protocol")
        names = (protocol,) if isinstance(protocol, str) else tuple(protocol)
        return "1-NN" if "nn" in names and "knn" not in names else "kNN"

    def latest(self, key: str) -> Any:
        """The last value of a key that not every epoch has; None if none has it."""
        return _latest(self.epochs, key)

    @property
    def results(self) -> dict[str, float]:
        """The last results of all protocols but the kNN that evaluates epochs, by their names in metrics.jsonl."""
        keys = dict.fromkeys(key for epoch in self.epochs for key in epoch if key.startswith(_OF_PROTOCOLS))
        latest = {key: self.latest(key) for key in keys}
        return {key: value for key, value in latest.items() if isinstance(value, (int, float))}

    def run_epoch(self, epoch: dict[str, Any]) -> int:
        """Epochs completed since the run began, counted over all rounds."""
        return (epoch["round"] - self.value("first_round")) * self.value("max_epoch") + epoch["epoch"]

    @property
    def finished(self) -> bool:
        """Whether the last epoch of the last round is done."""
        if not self.epochs:
            return False
        last = self.epochs[-1]
        return last["round"] >= self.value("max_round") - 1 and last["epoch"] >= self.value("max_epoch")

    @property
    def progress(self) -> str:
        """The completed rounds and epochs, in words."""
        if not self.epochs:
            return "no epoch completed"
        last, first, end, epochs = self.epochs[-1], *map(self.value, ("first_round", "max_round", "max_epoch"))
        if self.finished:
            return f"all {end - first} rounds completed" if end - first > 1 else "its one round completed"
        return f"round {last['round']} of {first} to {end - 1}, {last['epoch']} of its {epochs} epochs completed"

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Value and default of the options that differ from their default."""
        return {
            name: (value, getattr(_DEFAULTS, name))
            for name, value in self.options.items()
            if name in _BY_NAME and value != getattr(_DEFAULTS, name)
        }


def _latest(epochs: list[dict[str, Any]], key: str) -> Any:
    return next((epoch[key] for epoch in reversed(epochs) if epoch.get(key) is not None), None)


def result_words(key: str) -> str:
    """The name of a result in words: `linear, layer1 top-1` for `linear_layer1_top1`."""
    protocol, _, what = key.partition("_")
    words = what.replace("_", " ").replace("top1", "top-1").replace("top5", "top-5")
    return f"{protocol}, {words.upper() if words in ('nmi', 'ari') else words}"


def result_text(key: str, value: float) -> str:
    """Shares in per cent, other numbers as they are."""
    if key.endswith(_SHARES):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _options(config: Path) -> dict[str, Any]:
    """The options in config.yaml. One that this version does not know or cannot read keeps the text of the file.

    Raises:
        ValueError: it is one of `_COUNTED_BY`.
    """
    values: dict[str, Any] = {}
    for key, raw, _ in read_yaml(str(config)):
        try:
            values[key] = from_text(_BY_NAME[key], raw) if key in _BY_NAME else raw
        except ValueError as error:
            if key in _COUNTED_BY:
                raise ValueError(f"{config}: {key}: {error}") from None
            values[key] = raw
    return values
