"""Which checkpoints a session keeps: the last and the best of each round, and some before the last."""

import contextlib
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

from lib.checkpoint import io as checkpoint
from lib.logger.console import LOGGER
from lib.runtime.atomic import link, put_in_place
from lib.session.folder import CHECKPOINT_NAME, SessionFolder

log = logging.getLogger(LOGGER)


class Position(NamedTuple):
    """Where in the run a checkpoint stands: batches learnt from in an epoch, after complete epochs of a round."""

    round: int
    epoch: int
    step: int


class CheckpointSaver:
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
        self._last: Optional[tuple[Path, Position]] = None

    @property
    def last(self) -> Optional[Path]:
        """The newest checkpoint that can be gone on from."""
        return None if self._last is None else self._last[0]

    def go_on_from(self, source: Path, place: Position, anchors: int, is_best: bool) -> None:
        """Begin where an earlier process ended, with `source` as the newest checkpoint.

        Args:
            is_best: whether it stands after its round's best epoch. The earlier process may have ended before it
                could say so.
        """
        self._last = (source, place)
        best = self._session.checkpoint_file(place.round, anchors, best=True)
        if is_best and source != best and not (best.exists() and os.path.samefile(source, best)):
            link(source, best)

    def save(self, state: dict[str, Any], place: Position, anchors: int, is_best: bool) -> None:
        """Write the newest checkpoint.

        Raises:
            RunError: it cannot be written; those before it are as they were.
        """
        path = self._session.checkpoint_file(place.round, anchors)
        temporary = checkpoint.write(state, path)
        try:
            if self._keep > 1 and self._last is not None and self._last[0] == path:
                before = self._last[1]
                link(path, self._session.earlier_file(before.round, anchors, before.epoch, before.step))
            put_in_place(temporary, path)
            self._last = (path, place)
            if is_best:
                link(path, self._session.checkpoint_file(place.round, anchors, best=True))
            self._clear()
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise checkpoint.write_failed(path, error) from error

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


class AsyncCheckpointSaver(CheckpointSaver):
    """As `CheckpointSaver`, but `save` returns before the file is written. One is written at a time.

    A run that is killed meanwhile goes on from the one before. What is saved must not be changed afterwards. Not for a
    run that starts processes by fork, which would take over locks that the thread holds.
    """

    def __init__(self, session: SessionFolder, keep: int):
        super().__init__(session, keep)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._underway: Optional[Future[None]] = None

    @property
    def last(self) -> Optional[Path]:
        """As `CheckpointSaver.last`, once all is written.

        Raises:
            RunError: it cannot be written.
        """
        self.settle()
        return super().last

    def save(self, state: dict[str, Any], place: Position, anchors: int, is_best: bool) -> None:
        """Begin to write the newest checkpoint.

        Raises:
            RunError: the one before could not be written.
        """
        self.settle()
        self._underway = self._writer.submit(super().save, state, place, anchors, is_best)

    def settle(self) -> None:
        """Wait until all is written.

        Raises:
            RunError: it cannot be written; those before it are as they were.
        """
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.result()

    def close(self) -> None:
        """The end of a run, also of one that failed: that a checkpoint could not be written is then said beside."""
        self._writer.shutdown()
        if self._underway is not None and self._underway.exception() is not None:
            log.warning("%s", self._underway.exception())
