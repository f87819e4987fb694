"""What a session says of itself beside its epochs.

starts.jsonl has a line for each time the run was started or gone on with, final.json the accuracy of the finished
network.
"""

import json
from pathlib import Path
from typing import Any, Optional

from lib.session.atomic import append_line, replace_text


def note_start(path: Path, record: dict[str, Any]) -> None:
    """Add a line. What it holds: `lib.training.start_record`."""
    append_line(path, json.dumps(record))


def note_final(
    path: Path,
    round_number: int,
    epoch: int,
    top1: float,
    top5: Optional[float],
    baselines: dict[str, float],
    features: Optional[dict[str, Any]] = None,
) -> None:
    """Write the accuracies, shares of 1, with all features recomputed after so many epochs of the round.

    Args:
        baselines: top-1 of what needs no learning, by name.
        features: `level`, `whitened`, `top1` and `top5` of those that --features and --whiten ask for, where they are
            not the network's output as it is.
    """
    final = {"round": round_number, "epoch": epoch, "top1": top1, "top5": top5, "baselines": baselines}
    if features is not None:
        final["features"] = features
    replace_text(path, json.dumps(final) + "\n")


def read_final(path: Path, round_number: int, epoch: int) -> Optional[dict[str, Any]]:
    """What `note_final` wrote; None if there is nothing, or if the run has gone on since.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        final = json.loads(path.read_text(encoding="utf-8"))
        return final if (final["round"], final["epoch"]) == (round_number, epoch) else None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not what was written there; remove it") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line; none if there is no file. A last line cut off by a kill is left out.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    records = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        records.append(record)
    return records
