"""Runs the textbook version in a process of its own, with the settings of a plain Python program instead of ours."""

import multiprocessing
from multiprocessing.connection import Connection

from benchmarks import textbook
from benchmarks.setting import Setting


class TextbookProcess:
    """The textbook version in another process: a call runs it there once and waits for it.

    Args:
        name: of a function in `benchmarks.textbook` that takes a Setting and returns what is to be timed.

    Raises:
        RuntimeError: from a call, when the process has failed; it has printed why.
    """

    def __init__(self, name: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, setting, theirs))
        self._process.start()
        theirs.close()

    def __call__(self) -> None:
        try:
            self._connection.send("run")
            self._connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("the textbook version failed; see above") from None

    def __enter__(self) -> "TextbookProcess":
        return self

    def __exit__(self, *reason: object) -> None:
        self._connection.close()
        self._process.join()


def _serve(name: str, setting: Setting, connection: Connection) -> None:
    """Run the contender at each request, until the other side closes the connection."""
    contender = getattr(textbook, name)(setting)
    while True:
        try:
            connection.recv()
        except (EOFError, ConnectionError):
            break
        contender()
        setting.synchronise()
        connection.send("done")
