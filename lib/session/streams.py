"""The standard streams: a run is worth more than its words, and goes on where nobody can hear them."""

import contextlib
import os
import sys
import traceback
from typing import Any

UNHEARD = (OSError, ValueError, AttributeError, RuntimeError)
"""What writing to a standard stream raises: a full disk, a closed file, an encoding without é; a stand-in without
`flush`, or whose window is gone."""


def take_what_there_is() -> None:
    """Make the standard streams fit to be written to. Call it before any file is opened.

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
