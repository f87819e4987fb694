"""Checkpoints that a thread writes while the run goes on: where an epoch takes seconds, a flush to the disk shows."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from lib.checkpoint.saver import Checkpoints, Place
from lib.logger.console import LOGGER
from lib.session.folder import SessionFolder

log = logging.getLogger(LOGGER)


class CheckpointsBehind(Checkpoints):
    """As `Checkpoints`, but `save` returns before the file is written. One is written at a time.

    A run that is killed meanwhile goes on from the one before. What is saved must not be changed afterwards. Not for a
    run that starts processes by fork, which would take over locks that the thread holds.
    """

    def __init__(self, session: SessionFolder, keep: int):
        super().__init__(session, keep)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._underway: Optional[Future[None]] = None

    @property
    def last(self) -> Optional[Path]:
        """As `Checkpoints.last`, once all is written.

        Raises:
            RunError: it cannot be written.
        """
        self.settle()
        return super().last

    def save(self, state: dict[str, Any], place: Place, anchors: int, is_best: bool) -> None:
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
