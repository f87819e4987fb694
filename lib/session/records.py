"""A session as its files record it, without PyTorch: config.yaml, starts.jsonl, metrics.jsonl and final.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from lib.config import OPTIONS, Options, of_older_version
from lib.config.parsing import from_text
from lib.config.yaml_file import read as read_yaml
from lib.errors import UserError
from lib.runtime.atomic import append_line, replace_text
from lib.session.folder import SessionFolder
from lib.session.metrics import History, Round, read_lines

_BY_NAME = {option.name: option for option in OPTIONS}
_DEFAULTS = Options()
_REQUIRED = {"round", "epoch", "anchors", "consistency", "loss", "lr", "knn_top1", "seconds"}
_OF_PROTOCOLS = ("knn_features_", "nn_", "linear_", "cluster_", "rankme_")  # beginnings of the names of results
_SHARES = ("top1", "top5", "accuracy", "confidence")  # ends of the names of those between 0 and 1
_COUNTED_BY = ("first_round", "max_round", "max_epoch", "ANs_size")  # options without which epochs cannot be counted


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
        round_number, epoch: the position of the finished network in the run.
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


def write_bad_batch(
    folder: Path,
    round_number: int,
    epoch: int,
    step: int,
    what: str,
    rows: Sequence[int],
    files: Optional[Sequence[str]],
) -> Path:
    """Write the batch that produced a non-finite value to `not-finite-rRRRR-eEEEE-sSSSSSS.json`.

    Args:
        folder: of the session.
        epoch, step: counted from 1, as in the log.
        what: loss or gradient.
        rows: of the B training images.
        files: their paths, or None for images in memory.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"not-finite-r{round_number:04d}-e{epoch:04d}-s{step:06d}.json"
    note = {
        "round": round_number,
        "epoch": epoch,
        "step": step,
        "not_finite": what,
        "indices": list(rows),
        "files": files if files is None else list(files),
    }
    path.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return path


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
            UserError: it is not a session, or one of its files is damaged.
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
    def rounds(self) -> list[Round]:
        """The rounds that have begun, in order."""
        return History.of(self.epochs).rounds

    def value(self, name: str) -> Any:
        """The value of an option. One that config.yaml lacks has the value in effect in the version that wrote
        it, else the default; None for a name that is not an option."""
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
        return next((epoch[key] for epoch in reversed(self.epochs) if epoch.get(key) is not None), None)

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
