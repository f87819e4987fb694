"""Pictures as people have them: one folder, anything below it, no classes, nothing kept apart for a test."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from datasets.image_folder import SUFFIXES, files_below, is_image
from datasets.image_set import ImageSet
from datasets.normalisation import IMAGENET
from datasets.split import Split
from lib.errors import UserError

_PICTURES_WE_CANNOT_READ = (".heic", ".heif", ".avif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2")
_NAMED = 6  # endings of other files that the note names


def photos(root: Path, download: bool) -> Split:
    """Every picture below `root`, at any depth, in the order of the paths; all of them are there to learn from.

    What begins with a dot is passed over, and so are session folders, and files that are no pictures by their names;
    the notes count them.
    Links are followed.

    Raises:
        UserError: there is no such folder, it cannot be read, or no picture is in it.
    """
    if not root.is_dir():
        raise UserError(f"--dataset photos: there is no folder {root}; point --data-root at your pictures")
    try:
        files, sessions = files_below(str(root))
    except OSError as error:
        raise UserError(f"--dataset photos: {error.filename} cannot be read: {error.strerror}") from error
    pictures = [path for path in files if is_image(path)]
    others = Counter(_ending(path) for path in files if not is_image(path))
    if not pictures:
        found = f"; what it holds: {_counted(others.most_common())}" if others else ""
        raise UserError(f"--dataset photos: {root} holds no pictures (files ending in {', '.join(SUFFIXES)}){found}")
    return Split("photos", ImageSet(pictures), None, *IMAGENET, tuple(_notes(others, len(sessions))))


def _notes(others: Counter, sessions: int) -> Iterable[str]:
    unreadable = [(ending, others[ending]) for ending in _PICTURES_WE_CANNOT_READ if others[ending]]
    if unreadable:
        yield f"passed over: {_counted(unreadable)} (not readable here; convert them to JPEG to use them)"
    rest = [(ending, count) for ending, count in others.most_common() if ending not in _PICTURES_WE_CANNOT_READ]
    if rest:
        yield f"passed over: {_counted(rest)} (no pictures by their names)"
    if sessions:
        yield f"passed over: {sessions:,} session {'folder' if sessions == 1 else 'folders'} of runs"


def _counted(endings: list[tuple[str, int]]) -> str:
    """`3 .txt, 1 .mov`."""
    text = ", ".join(f"{count:,} {ending}" for ending, count in endings[:_NAMED])
    more = sum(count for _, count in endings[_NAMED:])
    return text + (f" and {more:,} others" if more else "")


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower() or "nameless"
