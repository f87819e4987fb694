"""The words and numbers of a run: the terminal, log.txt, and metrics.jsonl."""

import contextlib
import json
import logging
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # without it there are lines in place of bars
    tqdm = None

from lib.logger.streams import UNHEARD, is_terminal, say
from lib.session.atomic import append_line, replace_text, writing

LOGGER = "and"


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = _fitted(self.format(record))
        with contextlib.suppress(*UNHEARD):
            (print if tqdm is None else tqdm.write)(line, file=sys.stdout)
            sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Gives up, with a warning on standard error, when the disk is full; the run goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        stream, self.stream = self.stream, None
        say(f"warning: {self.baseFilename}: {error.strerror}; the log ends here")
        with contextlib.suppress(OSError):
            stream.close()  # which would like to write what is left


_HANG = 10
"""Columns that the first words of a line, such as `options`, take; where a line goes on, it goes on after them."""

_WHOLE = ("command ", "watch ", "session ", "|", "+")
"""Lines that begin so stay whole: to be copied, or because they are tables."""


def _fitted(text: str) -> str:
    """Long lines broken between words where there is a terminal; a pipe gets them as they are."""
    if not is_terminal(sys.stdout):
        return text
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        short = len(line) <= width or line.startswith(_WHOLE)
        wrapped = textwrap.wrap(
            line, width, subsequent_indent=" " * _HANG, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if short else wrapped
    return "\n".join(lines)


def open_log(log_file: Optional[Path], brief: bool, silent: bool = False) -> logging.Logger:
    """The run's logger: plain text on the terminal, with the time of day in the file.

    Args:
        log_file: where to append, or None for no file.
        brief: the terminal shows warnings and the records marked as results only.
        silent: nothing is shown: another process of the run tells the same.
    """
    close_log()
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.CRITICAL if silent else logging.INFO)
    logger.propagate = False
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    if brief:
        terminal.addFilter(lambda record: record.levelno >= logging.WARNING or getattr(record, "result", False))
    logger.addHandler(terminal)
    if log_file is not None:
        file = _FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    return logger


def close_log() -> None:
    """Undo `open_log`: a second run in this process starts with a clean logger, and a program hears its warnings."""
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class Metrics:
    """metrics.jsonl: one JSON object a line and epoch, in the order they happened.

    Going on from an earlier point moves the lines after it to metrics.superseded.jsonl, so that the
    file always tells one story and nothing is lost.
    """

    def __init__(self, path: Path):
        self.path = path

    def _lines(self) -> list[str]:
        """The complete lines; a last one cut off by a kill is not counted."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]

    def append(self, record: dict[str, Any]) -> None:
        """Add a line and flush it to the disk.

        Raises:
            RunError: it cannot be written.
        """
        append_line(self.path, json.dumps(record))

    def last(self) -> dict[str, Any]:
        """The last line, empty if there is none."""
        lines = self._lines() if self.path.exists() else []
        return json.loads(lines[-1]) if lines else {}

    def amend_last(self, values: Mapping[str, Any]) -> None:
        """Add values to the last line, or replace those it has; what was found when it was on disk already."""
        if not self.path.exists():
            return
        lines = self._lines()
        if not lines:
            return
        lines[-1] = json.dumps({**json.loads(lines[-1]), **values})
        replace_text(self.path, "".join(line + "\n" for line in lines))

    def rewind(self, round_number: int, epoch: int) -> None:
        """Keep what came up to and including (round, epoch). Lines that are not ours are put aside with the others."""
        if not self.path.exists():
            return
        kept, superseded = [], []
        for line in self._lines():
            here = _place(line)
            (kept if here is not None and here <= (round_number, epoch) else superseded).append(line + "\n")
        if superseded:
            aside = self.path.with_name("metrics.superseded.jsonl")
            with writing(aside), open(aside, "a", encoding="utf-8") as file:
                file.writelines(superseded)
        replace_text(self.path, "".join(kept))


def _place(line: str) -> Optional[tuple[int, int]]:
    """Round and epoch of a line, None if it is not one of ours: the file may have been damaged."""
    try:
        record = json.loads(line)
        return int(record["round"]), int(record["epoch"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
