"""Which checkpoints a session keeps: the last and the best of each round, and some before the last."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Optional

from lib.checkpoint import io as checkpoint
from lib.session.folder import CHECKPOINT_NAME, SessionFolder


class Place(NamedTuple):
    """Where in the run a checkpoint stands: batches learnt from in an epoch, after complete epochs of a round."""

    round: int
    epoch: int
    step: int


class Checkpoints:
    """Writes the checkpoints of a session so that at any moment there is a last one that is whole.

    A new one takes the place of the last of its round; that one is kept under the name of its place until `keep`
    newer ones have come. The best of a round is another name for the same file, or a copy where the file system has
    no links.

    Args:
        session: whose they are.
        keep: how many of the newest there are, at least 1. The last and the best of each round stay besides.
    """

    def __init__(self, session: SessionFolder, keep: int):
        self._session, self._keep = session, keep
        self._last: Optional[tuple[Path, Place]] = None

    @property
    def last(self) -> Optional[Path]:
        """The newest checkpoint that can be gone on from."""
        return None if self._last is None else self._last[0]

    def go_on_from(self, source: Path, place: Place, anchors: int, is_best: bool) -> None:
        """Begin where an earlier process ended, with `source` as the newest checkpoint.

        Args:
            is_best: whether it stands after its round's best epoch. The earlier process may have ended before it
                could say so.
        """
        self._last = (source, place)
        best = self._session.checkpoint_file(place.round, anchors, best=True)
        if is_best and source != best and not (best.exists() and os.path.samefile(source, best)):
            _name_too(source, best)

    def save(self, state: dict[str, Any], place: Place, anchors: int, is_best: bool) -> None:
        """Write the newest checkpoint.

        Raises:
            RunError: it cannot be written; those before it are as they were.
        """
        path = self._session.checkpoint_file(place.round, anchors)
        temporary = checkpoint.write(state, path)
        try:
            if self._keep > 1 and self._last is not None and self._last[0] == path:
                before = self._last[1]
                _name_too(path, self._session.earlier_file(before.round, anchors, before.epoch, before.step))
            os.replace(temporary, path)
            _flush_folder(path.parent)
            self._last = (path, place)
            if is_best:
                _name_too(path, self._session.checkpoint_file(place.round, anchors, best=True))
            self._clear()
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise checkpoint.not_written(path, error) from error

    def settle(self) -> None:
        """Wait until all is written, where it is not at once."""

    def close(self) -> None:
        """The end of a run."""

    def _clear(self) -> None:
        """Remove the oldest of those that stand before a last one."""
        earlier = []
        for path in self._session.checkpoints.glob("*.ckpt"):
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match and match[4]:
                earlier.append((int(match[1]), int(match[4]), int(match[5]), path))
        for *_, path in sorted(earlier)[: max(0, len(earlier) - (self._keep - 1))]:
            path.unlink()


def _name_too(path: Path, other: Path) -> None:
    """Give a file another name, in one step and in place of what had it."""
    temporary = other.with_name(f"{other.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    finally:
        with contextlib.suppress(OSError):  # two names of one file: replacing did nothing
            temporary.unlink()


def _flush_folder(folder: Path) -> None:
    """So that the new name outlives a power cut. Some file systems do not know it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
