"""TensorBoard's event files, written at once and in this process.

tensorboardX writes from a thread of its own. When the disk is full that thread ends with a traceback, and the run waits
for it forever.
"""

import logging
import os
from typing import Any, Optional

from tensorboardX import FileWriter, SummaryWriter
from tensorboardX.event_file_writer import EventsWriter

from lib.logger.console import LOGGER

log = logging.getLogger(LOGGER)


class EventFile(SummaryWriter):
    """A SummaryWriter that gives up, with a warning, where nothing can be written; the run goes on.

    Args:
        folder: where the file goes.
        purge_step: what older files in the folder say of this step and later ones is dropped from view.
    """

    def __init__(self, folder: str, purge_step: Optional[int] = None):
        self._own: Optional[_Direct] = None
        super().__init__(folder, purge_step=purge_step)

    def _get_file_writer(self) -> Any:
        if self._own is None:
            self._own = _Direct(self.logdir)
            self.file_writer, self.all_writers = self._own, {self.logdir: self._own}
            if self.purge_step is not None:
                from tensorboardX.proto.event_pb2 import Event, SessionLog

                self._own.add_event(Event(session_log=SessionLog(status=SessionLog.START)), self.purge_step)
        return self._own


class _Direct(FileWriter):
    """tensorboardX's writer of files without its thread."""

    def __init__(self, folder: str):
        self.event_writer = _Events(folder)
        self._default_metadata: dict[str, Any] = {}


class _Events:
    """What `FileWriter` asks of its event writer."""

    def __init__(self, folder: str):
        self._folder = folder
        self._writer: Optional[EventsWriter] = None
        self._attempt(self._open)

    def get_logdir(self) -> str:
        return self._folder

    def add_event(self, event: Any) -> None:
        self._attempt(lambda: self._writer.write_event(event))

    def flush(self) -> None:
        self._attempt(lambda: self._writer.flush())

    def close(self) -> None:
        self._attempt(lambda: self._writer.close())
        self._writer = None

    def reopen(self) -> None:
        """Files are not opened again."""

    def _open(self) -> None:
        os.makedirs(self._folder, exist_ok=True)
        self._writer = EventsWriter(os.path.join(self._folder, "events"))

    def _attempt(self, action: Any) -> None:
        if self._writer is None and action != self._open:
            return  # closed, or given up
        try:
            action()
        except OSError as error:
            self._writer = None
            log.warning(
                "TensorBoard files in %s can no longer be written: %s; the run goes on without",
                self._folder,
                error.strerror or error,
            )
