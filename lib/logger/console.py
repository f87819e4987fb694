"""The terminal and log.txt: messages and progress. A run does not end because its output cannot be written."""

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Optional

LOGGER = "and"
"""Name of the logger of the whole project."""

RESULT = {"result": True}
"""`extra` of the records that --brief shows."""

WRITE_ERRORS = (OSError, ValueError, AttributeError, RuntimeError)
"""Errors of writing to a standard stream: a full disk, a closed file, a character outside the encoding, or a stream's
replacement without `flush`, or whose window is closed."""

_INDENT = 10
"""Columns of a line's first word, such as `options`: the indent of the continuation of a broken line."""

_UNBROKEN = ("command ", "watch ", "session ", "|", "+")
"""Beginnings of lines that are never broken: commands and paths to copy, and rows of tables."""

LINE_EVERY = 60.0
"""Seconds between progress lines where there is no bar."""
WINDOW = 10.0
"""Seconds of training over which a rate is measured."""
SLOWDOWN = 3
"""A rate below one third of the fastest is reported."""

_TQDM_NUMBERS = {
    **{f"TQDM_{name}": float for name in ("TOTAL", "MININTERVAL", "MAXINTERVAL", "MINITERS", "SMOOTHING", "DELAY")},
    **{f"TQDM_{name}": int for name in ("NCOLS", "NROWS", "POSITION", "INITIAL", "UNIT_DIVISOR")},
}


def prepare_streams() -> None:
    """Make the standard streams writable, and the environment readable for tqdm. Call it before any file is opened.

    A closed stream is opened on /dev/null: otherwise the next opened file would get its descriptor, and with it the
    output of libraries.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started, or there is no console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as Python runs
        elif hasattr(stream, "reconfigure"):  # a file's name may hold characters outside the terminal's encoding
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
    for name in _TQDM_NUMBERS.keys() & os.environ.keys():  # tqdm reads them at import, and fails if one is no number
        try:
            _TQDM_NUMBERS[name](os.environ[name])
        except ValueError:
            print_error(f"warning: {name} in the environment is not a number and is ignored")
            del os.environ[name]


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal. A replacement for a stream may have only `write`."""
    try:
        return stream.isatty()
    except WRITE_ERRORS:
        return False


def print_error(line: str) -> None:
    """Print a line on standard error, if that can be written to."""
    with contextlib.suppress(*WRITE_ERRORS):
        print(line, file=sys.stderr)


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled on standard error, if that can be written to."""
    with contextlib.suppress(*WRITE_ERRORS):
        traceback.print_exc()


def open_log(log_file: Optional[Path], brief: bool, silent: bool = False) -> logging.Logger:
    """Set up the run's logger: plain text on the terminal, with the time of day in the file.

    Args:
        log_file: where to append, or None for no file.
        brief: the terminal shows only warnings and the records marked with `RESULT`.
        silent: nothing is shown; for all ranks but the first, which would repeat its lines.
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
    """Undo `open_log`: a second run in this process starts with a clean logger, and other code's handlers get its
    records again."""
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = _fitted(self.format(record))
        tqdm = sys.modules.get("tqdm")  # without it there is no bar
        with contextlib.suppress(*WRITE_ERRORS):
            (print if tqdm is None else tqdm.tqdm.write)(line, file=sys.stdout)
            sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Stops writing, with a warning on standard error, when the disk is full; the run continues."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        stream, self.stream = self.stream, None
        print_error(f"warning: {self.baseFilename}: {error.strerror}; the log ends here")
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()  # which tries to write the rest of its buffer


def _fitted(text: str) -> str:
    """The text with long lines broken between words, if standard output is a terminal; a pipe gets whole lines."""
    if not is_terminal(sys.stdout):
        return text
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        short = len(line) <= width or line.startswith(_UNBROKEN)
        wrapped = textwrap.wrap(
            line, width, subsequent_indent=" " * _INDENT, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if short else wrapped
    return "\n".join(lines)


def progress_bar(total: int, quiet: bool, **settings: Any) -> Any:
    """A bar of tqdm; None if `quiet`, where standard error is not a terminal, or without the package.

    Args:
        settings: as of `tqdm.tqdm`.
    """
    if quiet or not is_terminal(sys.stderr):
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # log lines replace the bar
        return None
    return tqdm(total=total, leave=False, **settings)


class Progress:
    """How many images of all rounds the network has been trained on: a bar, or a log line every minute.

    Args:
        images: in the whole run.
        done: of these, before this process started (a resumed run).
        quiet: show nothing (`--brief`).
    """

    def __init__(self, images: int, done: int, quiet: bool):
        self._log = logging.getLogger(LOGGER)
        self._total, self._done, self._quiet = images, done, quiet
        self._started, self._done_before = time.monotonic(), done
        self._epoch_started, self._done_before_epoch = self._started, done
        self._last_line = time.monotonic()
        self._label = ""
        self._bar = progress_bar(images, quiet, initial=done, dynamic_ncols=True, bar_format=_BAR.format("", ""))

    def label(self, text: str) -> None:
        """Show which epoch begins, e.g. "round 1/4 epoch 3/200"."""
        self._label = text
        self._epoch_started, self._done_before_epoch = time.monotonic(), self._done
        self._show("")

    def note(self, text: str) -> None:
        """Show the activity between two epochs, e.g. "evaluating"."""
        self._show(text)

    def advance(self, images: int, loss: Optional[float] = None) -> None:
        """Count images that were trained on; `loss` is given at intervals, since reading it waits for the device."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
            self._show(f"{self._rate()}{_loss_if_wide(loss)}")
        elif not self._quiet and loss is not None and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            self._log.info("%s  loss %.3f  %s", self._label, loss, self._rate())

    def _rate(self) -> str:
        """Images per second of this epoch, and the time left for all rounds, evaluations included, at the mean rate."""
        now = time.monotonic()
        speed = (self._done - self._done_before_epoch) / max(now - self._epoch_started, 1e-9)
        rate = (self._done - self._done_before) / max(now - self._started, 1e-9)
        return f"{speed:.0f} images/s  {duration((self._total - self._done) / rate)} left"

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.bar_format = _BAR.format(self._label, text)
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


_BAR = "{}  {{percentage:3.0f}}%|{{bar}}| {}"
_WIDE = 80  # columns


def _loss_if_wide(loss: Optional[float]) -> str:
    wide = shutil.get_terminal_size().columns >= _WIDE
    return f"  loss {loss:.3f}" if wide and loss is not None else ""


def duration(seconds: float) -> str:
    """A duration in words: `42 s`, `7 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class RateWatch:
    """Compares the images per second of each window with the fastest so far; it warns once.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since = clock, clock()
        self._images, self._seconds, self._fastest, self._has_warned = 0, 0.0, 0.0, False

    def resume(self) -> None:
        """Exclude the time since the last step, in which the run did not train."""
        self._since = self._clock()

    def update(self, images: int) -> Optional[tuple[float, float]]:
        """Count images that were trained on.

        Returns:
            the rate of this window and the fastest rate, the first time that it is below a third of the fastest; else
            None.
        """
        now = self._clock()
        self._images += images
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._seconds < WINDOW:
            return None
        rate, fastest = self._images / self._seconds, self._fastest
        self._images, self._seconds, self._fastest = 0, 0.0, max(rate, fastest)
        if self._has_warned or rate * SLOWDOWN >= fastest:
            return None
        self._has_warned = True
        return rate, fastest
