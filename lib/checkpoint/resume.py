"""From what `--resume` says to a checkpoint that can be gone on from."""

from pathlib import Path
from typing import Any, NamedTuple

from lib.checkpoint import io as checkpoint
from lib.errors import UserError
from lib.session.folder import checkpoints_of, find_checkpoint


class OpenedCheckpoint(NamedTuple):
    """The content of a checkpoint, its file, and what had to be passed over on the way to it, one line each."""

    saved: dict[str, Any]
    source: Path
    passed_over: tuple[str, ...] = ()


def statistics(saved: dict[str, Any]) -> dict[str, Any]:
    """The channel means and stds of a checkpoint as options: other images too must come to its network as its own did.
    Empty for one of an older version."""
    return {name: saved["dataset"][name] for name in ("means", "stds") if name in saved.get("dataset", {})}


def open_checkpoint(resume: str, sess_dir: str) -> OpenedCheckpoint:
    """The checkpoint that `--resume` means: a file, or the newest that can be read of a session folder or of `last`.

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
        return OpenedCheckpoint(
            saved, path, tuple(f"{error}; going on from an earlier one, {path}" for error in errors)
        )
    raise UserError(f"none of {len(errors)} checkpoints in {session} can be read; {errors[0]}")
