"""The standard streams: a run is worth more than its words, and goes on where nobody can hear them."""

import contextlib
import os
import sys
import traceback
from typing import Any

UNHEARD = (OSError, ValueError, AttributeError, RuntimeError)
"""What writing to a standard stream raises: a full disk, a closed file, an encoding without é; a stand-in without
`flush`, or whose window is gone."""


_TQDM_NUMBERS = {
    **{f"TQDM_{name}": float for name in ("TOTAL", "MININTERVAL", "MAXINTERVAL", "MINITERS", "SMOOTHING", "DELAY")},
    **{f"TQDM_{name}": int for name in ("NCOLS", "NROWS", "POSITION", "INITIAL", "UNIT_DIVISOR")},
}


def take_what_there_is() -> None:
    """Make the standard streams, and bars of progress on them, fit to be written to. Call it before any file is opened.

    A closed one is opened on nothing: the next file would get its number, and whatever is printed by a library.
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
        elif hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal's encoding does not
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
    for name in _TQDM_NUMBERS.keys() & os.environ.keys():  # tqdm reads them when it is imported, and fails at others
        try:
            _TQDM_NUMBERS[name](os.environ[name])
        except ValueError:
            say(f"warning: {name} in the environment is no number and is passed over")
            del os.environ[name]


def is_terminal(stream: Any) -> bool:
    """Whether somebody may be watching. A stand-in for a stream may have only `write`."""
    try:
        return stream.isatty()
    except UNHEARD:
        return False


def say(line: str) -> None:
    """A line on standard error, if it can be said."""
    with contextlib.suppress(*UNHEARD):
        print(line, file=sys.stderr)


def say_traceback() -> None:
    """Where the exception that is being handled happened, on standard error, if it can be said."""
    with contextlib.suppress(*UNHEARD):
        traceback.print_exc()
