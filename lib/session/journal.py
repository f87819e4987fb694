"""The words and numbers of a run: the terminal, log.txt, and metrics.jsonl."""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

LOGGER = "and"


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def open_log(log_file: Optional[Path], brief: bool, silent: bool = False) -> logging.Logger:
    """The run's logger: plain text on the terminal, with the time of day in the file.

    Args:
        log_file: where to append, or None for no file.
        brief: the terminal shows warnings and the records marked as results only.
        silent: nothing is shown: another process of the run tells the same.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.CRITICAL if silent else logging.INFO)
    logger.propagate = False
    close_log()
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    if brief:
        terminal.addFilter(lambda record: record.levelno >= logging.WARNING or getattr(record, "result", False))
    logger.addHandler(terminal)
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    return logger


def close_log() -> None:
    """Close the files of the run's logger; a second run in the same process starts with a clean one."""
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)


class Metrics:
    """metrics.jsonl: one JSON object a line and epoch, in the order they happened.

    Going on from an earlier point moves the lines after it to metrics.superseded.jsonl, so that the
    file always tells one story and nothing is lost.
    """

    def __init__(self, path: Path):
        self.path = path

    def _lines(self) -> list[str]:
        """The complete lines; a last one cut off by a kill is not counted."""
        text = self.path.read_text(encoding="utf-8")
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]

    def append(self, record: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def amend_last(self, values: Mapping[str, Any]) -> None:
        """Add values to the last line, or replace those it has; what was found when it was on disk already."""
        if not self.path.exists():
            return
        lines = self._lines()
        if not lines:
            return
        lines[-1] = json.dumps({**json.loads(lines[-1]), **values})
        self._replace("".join(line + "\n" for line in lines))

    def _replace(self, text: str) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)

    def rewind(self, round_number: int, epoch: int) -> None:
        """Keep what came up to and including (round, epoch)."""
        if not self.path.exists():
            return
        kept, superseded = [], []
        for line in self._lines():
            record = json.loads(line)
            here: tuple[int, int] = (record["round"], record["epoch"])
            (kept if here <= (round_number, epoch) else superseded).append(line + "\n")
        if superseded:
            with open(self.path.with_name("metrics.superseded.jsonl"), "a", encoding="utf-8") as file:
                file.writelines(superseded)
        self._replace("".join(kept))
