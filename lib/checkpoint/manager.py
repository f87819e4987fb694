"""The checkpoints of a session: their names, which are kept, and which one is resumed.

`RRRR-AAAAA.ckpt` (round, number of anchors) is the last of a round, `RRRR-AAAAA-best.ckpt` that of its best epoch, and
`RRRR-AAAAA-eEEEE-sSSSSSS.ckpt` one that was the last before (completed epochs, steps of the next).
"""

import contextlib
import logging
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

from lib.checkpoint import io as checkpoint
from lib.errors import UserError
from lib.logger.console import LOGGER
from lib.runtime.atomic import free_name, link, put_in_place
from lib.session.folder import SessionFolder

log = logging.getLogger(LOGGER)

CHECKPOINT_NAME = re.compile(r"(\d{4,})-(\d{5,})(-best|-e(\d{4,})-s(\d{6,}))?\.ckpt")


class Position(NamedTuple):
    """How much of a run is done: the round, its completed epochs, and steps (batches) of the next epoch."""

    round: int
    epoch: int
    step: int

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Position":
        """The position that a checkpoint's content has."""
        return cls(saved["round"], saved["epoch"], saved.get("step", 0))


class CheckpointSaver:
    """Writes the checkpoints of a session; after a kill at any moment the newest one is complete.

    A new checkpoint replaces the last of its round, which keeps a name of its own until `keep` - 1 newer ones
    are written. The best of a round is another name of the same file, or a copy where the file system has no links.

    Args:
        session: where to write.
        keep: how many of the newest to keep, at least 1, besides the last and the best of each round.
    """

    def __init__(self, session: SessionFolder, keep: int):
        self._folder, self._keep = session.checkpoints, keep
        self._last: Optional[tuple[Path, Position]] = None

    @property
    def last(self) -> Optional[Path]:
        """The newest checkpoint that can be resumed."""
        return None if self._last is None else self._last[0]

    def resume_from(self, source: Path, position: Position, anchors: int, is_best: bool) -> None:
        """Make `source`, which an earlier process wrote, the newest checkpoint.

        Args:
            is_best: whether it belongs to its round's best epoch. The process may have been killed before it gave the
                file that name.
        """
        self._last = (source, position)
        best = checkpoint_file(self._folder, position.round, anchors, "-best")
        if is_best and source != best and not (best.exists() and os.path.samefile(source, best)):
            link(source, best)

    def save(self, state: dict[str, Any], position: Position, anchors: int, is_best: bool) -> None:
        """Write the newest checkpoint.

        Raises:
            RunError: it cannot be written; earlier checkpoints are unchanged.
        """
        path = checkpoint_file(self._folder, position.round, anchors)
        temporary = checkpoint.write(state, path)
        try:
            if self._keep > 1 and self._last is not None and self._last[0] == path:
                before = self._last[1]
                kind = f"-e{before.epoch:04d}-s{before.step:06d}"
                link(path, checkpoint_file(self._folder, before.round, anchors, kind))
            put_in_place(temporary, path)
            self._last = (path, position)
            if is_best:
                link(path, checkpoint_file(self._folder, position.round, anchors, "-best"))
            self._remove_oldest()
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise checkpoint.write_failed(path, error) from error

    def flush(self) -> None:
        """Wait until all that was saved is on disk: nothing to do, since `save` waits."""

    def close(self) -> None:
        """End the run."""

    def _remove_oldest(self) -> None:
        """Remove the oldest of the checkpoints that newer ones have replaced as the last."""
        earlier = []
        for path in self._folder.glob("*.ckpt"):
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match and match[4]:
                earlier.append((int(match[1]), int(match[4]), int(match[5]), path))
        for *_, path in sorted(earlier)[: max(0, len(earlier) - (self._keep - 1))]:
            path.unlink()


class AsyncCheckpointSaver(CheckpointSaver):
    """A `CheckpointSaver` whose `save` returns before the file is written. A thread writes one at a time.

    It saves time where an epoch takes seconds. The caller must not change what it saves afterwards. Not for
    a run that forks processes: a child would inherit locks that the thread holds.
    """

    def __init__(self, session: SessionFolder, keep: int):
        super().__init__(session, keep)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Optional[Future[None]] = None

    @property
    def last(self) -> Optional[Path]:
        """The newest checkpoint that can be resumed, once all are written.

        Raises:
            RunError: one could not be written.
        """
        self.flush()
        return super().last

    def save(self, state: dict[str, Any], position: Position, anchors: int, is_best: bool) -> None:
        """Start to write the newest checkpoint.

        Raises:
            RunError: the one before could not be written.
        """
        self.flush()
        self._pending = self._writer.submit(super().save, state, position, anchors, is_best)

    def flush(self) -> None:
        """Wait until all that was saved is on disk.

        Raises:
            RunError: it could not be written; earlier checkpoints are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the run, also one that failed. A warning reports a checkpoint that could not be written."""
        self._writer.shutdown()
        if self._pending is not None and self._pending.exception() is not None:
            log.warning("%s", self._pending.exception())


def checkpoint_file(folder: Path, round_number: int, anchors: int, kind: str = "") -> Path:
    """The path of a checkpoint; `kind` is what follows the number of anchors."""
    return folder / f"{round_number:04d}-{anchors:05d}{kind}.ckpt"


class OpenedCheckpoint(NamedTuple):
    """The content of a checkpoint, its file, and the error of each newer one that could not be read."""

    saved: dict[str, Any]
    source: Path
    unreadable: tuple[str, ...] = ()


def open_checkpoint(resume: str, sess_dir: str) -> OpenedCheckpoint:
    """Load what `--resume` names: a file, or the newest readable checkpoint of a session folder or of `last`.

    Raises:
        UserError: there is none, or none that can be read.
    """
    source = find_checkpoint(resume, sess_dir)
    if resume != "last" and not Path(resume).is_dir():
        return OpenedCheckpoint(checkpoint.load(source), source)
    session = source.parent.parent
    errors: list[str] = []
    for path in checkpoints_of(session):
        try:
            saved = checkpoint.load(path)
        except UserError as error:
            errors.append(str(error))
            continue
        unreadable = tuple(f"{error}; resuming from an earlier one, {path}" for error in errors)
        return OpenedCheckpoint(saved, path, unreadable)
    raise UserError(f"none of {len(errors)} checkpoints in {session} can be read; {errors[0]}")


def find_checkpoint(resume: str, sess_dir: str) -> Path:
    """The file that `--resume` names: a checkpoint, the newest of a session folder, or `last`: that of the session with
    the newest one.

    Raises:
        UserError: there is none.
    """
    if resume == "last":
        sessions = sorted(
            {file.parent.parent for file in Path(sess_dir).glob("*/checkpoint/*.ckpt")},
            key=lambda path: max(map(_time_of_change, (path / "checkpoint").glob("*.ckpt")), default=0),
        )
        if not sessions:
            raise UserError(f"--resume last: no session in {sess_dir} has a checkpoint")
        return newest_checkpoint(sessions[-1])
    path = Path(resume)
    if path.is_dir():
        return newest_checkpoint(path)
    if path.is_fifo():
        raise UserError(f"--resume {resume}: it is a pipe, and a checkpoint is read in parts; save it as a file")
    if not path.is_file():
        raise UserError(f"--resume {resume}: there is no such file or session folder")
    return path


def newest_checkpoint(session: Path) -> Path:
    """The first of `checkpoints_of`.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_of(session)
    if not found:
        raise UserError(f"there is no checkpoint in {session / 'checkpoint'}")
    return found[0]


def checkpoints_of(session: Path) -> list[Path]:
    """The checkpoints of a session folder, newest first; within a round: the last, those before it, and the best."""
    found: list[tuple[int, int, int, int, Path]] = []
    for path in (session / "checkpoint").glob("*.ckpt"):
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match:
            kind = 2 if match[3] is None else 0 if match[3] == "-best" else 1
            found.append((int(match[1]), kind, int(match[4] or 0), int(match[5] or 0), path))
    return [path for *_, path in sorted(found, reverse=True)]


def newest_by_round(session: Path) -> dict[int, Path]:
    """The first of `checkpoints_of` of each round; rounds in order."""
    return {int(path.name.partition("-")[0]): path for path in reversed(checkpoints_of(session))}


def supersede_after(session: SessionFolder, position: Position) -> None:
    """Move the checkpoints after a position, from which the run is resumed, to checkpoint/superseded/.

    Without this, a later `--resume` of the session would find the discarded epochs. A checkpoint of the same round that
    cannot be read is moved too. Files that a killed process left half-written are deleted.
    """
    for left in session.checkpoints.glob("*.ckpt.*.tmp"):
        if left.is_file():
            left.unlink()

    def is_later(path: Path) -> bool:
        try:
            return Position.of(checkpoint.load(path)) > position
        except UserError:
            return True

    for path in sorted(session.checkpoints.glob("*.ckpt")):
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match is None or int(match[1]) < position.round:
            continue
        if int(match[1]) > position.round or is_later(path):
            move_aside(session, path)


def move_aside(session: SessionFolder, path: Path) -> None:
    """Move a file of a session to checkpoint/superseded/, under a new name if there is one of its name."""
    aside = session.checkpoints / "superseded"
    aside.mkdir(exist_ok=True)
    path.replace(free_name(aside / path.name))


def statistics(saved: dict[str, Any]) -> dict[str, Any]:
    """The channel means and stds of a checkpoint as options, so that images are normalised as in its training."""
    return {name: saved["dataset"][name] for name in ("means", "stds") if name in saved.get("dataset", {})}


def _time_of_change(file: Path) -> int:
    """Modification time in nanoseconds; 0 for a file that has been deleted in the meantime, and for a dead link."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
