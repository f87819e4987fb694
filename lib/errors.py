"""The errors that end a run, each printed as one line on standard error; and the formatting of names in such lines."""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Optional, TypeVar


def one_line(text: object) -> str:
    """A text without line breaks and control characters: names of files may hold any."""
    return "".join(part if part.isprintable() else repr(part)[1:-1] for part in str(text))


PEER_FAILURE = 75
"""Exit status of a process that stopped because another one did: EX_TEMPFAIL of sysexits.h."""


T = TypeVar("T")


def not_none(value: Optional[T]) -> T:
    """The value, of which earlier checks ensure that it is not None; tells mypy so."""
    assert value is not None
    return value


class UserError(Exception):
    """An error that the user can correct: an option, a path, a data set. Exit status 2.

    The message says what is wrong, where it was found, and what to do, in one line.
    """


class UnreadableImage(UserError):
    """An image file that cannot be decoded. --skip-bad-images leaves such files out."""


class RunError(Exception):
    """The run failed for a reason outside the command line: a full disk, a loss that is not finite. Exit status 1."""


class Interrupted(Exception):
    """The run was asked to stop by a signal, and did. Exit status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
        message: where the run stopped and how to resume it, in one line.
        by_all: whether all processes of the run have agreed on it, and each raises it.
    """

    def __init__(self, number: int, message: str, by_all: bool = False):
        super().__init__(message)
        self.status = 128 + number
        self.by_all = by_all


class PeerFailure(RunError):
    """Another process of the run has ended or cannot be reached. Exit status `PEER_FAILURE`."""


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or where all of them are listed."""
    # batch-size, BatchSize and --batchsize count as batch_size
    plain = {_plain(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    return f"did you mean {plain[near[0]]}?" if near else "--help lists the options"


def shown(name: str) -> str:
    """A name as an error repeats it: quoted if it is empty or would break the line."""
    return name if name.isprintable() and name else repr(name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def exit_status(error: Exception) -> int:
    """The exit status of a call that an error ends."""
    if isinstance(error, PeerFailure):
        return PEER_FAILURE
    return 2 if isinstance(error, UserError) else 1


def error_text(error: Exception) -> str:
    """The text of an error for the user. An exception that no code foresees is called unforeseen."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if package in ("datasets", "models", "lib"):
        module = sys.modules.get(package)
        ours = Path(__file__).resolve().parents[1] / package
        # a folder without __init__.py has no file, and a module that is not a package has no path
        found = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if found is not None and ours not in (Path(found), Path(found).parent):
            return (
                f"another package called {package} was imported first ({found}); run main.py in a process of its own, "
                "or use and_discovery, which works beside it"
            )
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return (
            f"the Python package {error.name} is missing in {sys.executable}; use the environment that has what "
            "requirements.txt lists (make demo makes one: . .venv/bin/activate), or pip install -r requirements.txt"
        )
    reason = " ".join(str(error).split())
    return f"unforeseen {type(error).__name__}: {reason}; --debug-errors shows where it happened"
