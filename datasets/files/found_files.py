"""Finds the pictures below a folder, and counts by kind what is skipped."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Optional

from datasets.files.decode import is_image, is_unreadable_image
from lib.errors import one_line

ENDINGS = "files ending in .jpg, .png, .webp, .tif and the like: all that Pillow can decode here"
"""The suffixes of pictures, for messages."""

_NAMED = 6  # suffixes and folders that a note names

_SYSTEM_FOLDERS = frozenset((
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@sharesnap", "@syno", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "lost.dir",
    "__macosx", "network trash folder", "temporary items", "__pycache__", ".@__thumb", ".thumbnails", ".thumbs",
    ".trash", ".trashes", ".recycle", ".recycle.bin", ".spotlight-v100", ".fseventsd", ".documentrevisions-v100",
    ".temporaryitems", ".appledouble", ".picasaoriginals", ".snapshot", ".snapshots", ".zfs", ".ipynb_checkpoints",
))  # fmt: skip
"""Folders of thumbnails, deleted files and snapshots that operating systems and NAS devices make, in lower case."""

_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "zbthumbnail.info"))


@dataclass
class Found:
    """The files below one or several folders, as paths.

    Attributes:
        pictures: files with the suffix of a picture that can be read here, sorted.
        others: all other files, unreadable pictures included.
        sessions: session folders of runs. They are skipped: a run writes pictures into its own, and must find the same
            images when it is resumed.
        system: folders that operating systems make.
        closed: folders without permission to enter.
    """

    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Adds what was found in another folder."""
        for name in ("pictures", "others", "sessions", "system", "closed"):
            getattr(self, name).extend(getattr(other, name))

    def skipped(self, where: str = "") -> list[str]:
        """Lines about what is skipped, one for each reason; `where` follows the first word, e.g. ` in train`."""
        unreadable = Counter(_ending(path) for path in self.others if is_unreadable_image(path))
        rest = Counter(_ending(path) for path in self.others if not is_unreadable_image(path))
        lines = []
        if unreadable:
            lines.append(f"{counted(unreadable)} (not readable here; convert them to JPEG to use them)")
        if rest:
            lines.append(f"{counted(rest)} (not named like pictures)")
        if self.sessions:
            count = len(self.sessions)
            lines.append(f"{count:,} session {'folder' if count == 1 else 'folders'} of runs")
        if self.system:
            names = Counter(os.path.basename(path) for path in self.system)
            lines.append(f"{counted(names)} (made by operating systems)")
        if self.closed:
            shown = ", ".join(map(one_line, self.closed[:_NAMED]))
            more = f" and {len(self.closed) - _NAMED:,} more" if len(self.closed) > _NAMED else ""
            lines.append(f"{shown}{more} (may not be entered: permission denied)")
        return [f"skipped{where}: {line}" for line in lines]

    def holdings(self) -> str:
        """The contents of a folder without pictures, as the end of a message; empty if it holds nothing."""
        parts = [counted(Counter(map(_ending, self.others)))] if self.others else []
        parts += [f"{len(paths):,} {name}" for name, paths in (("session folders", self.sessions),) if paths]
        parts += [f"{one_line(path)}, which may not be entered" for path in self.closed[:_NAMED]]
        return f"; what it holds: {', '.join(parts)}" if parts else ""


def scan_folder(folder: str, above: Sequence[str] = ()) -> Found:
    """Finds all files below a folder, at any depth.

    Names that begin with a dot are skipped. Links are followed, but no folder is read twice.

    Args:
        above: folders that are not read again when a link leads to them.

    Raises:
        OSError: the folder cannot be read, or reading below it fails for another reason than a missing permission.
    """
    seen = {os.path.realpath(path) for path in above}
    found = Found()
    pending = [folder]
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            files, folders = entries(here, found)
        except PermissionError:
            if here == folder:
                raise
            found.closed.append(here)
            continue
        if _is_session(here):
            found.sessions.append(here)
            continue
        sort_files(files, found)
        pending.extend(reversed(folders))
    for paths in (found.pictures, found.others, found.sessions, found.system, found.closed):
        paths.sort()
    return found


def sort_files(files: Iterable[str], found: Found) -> None:
    """Adds each file to the pictures or to the others."""
    for path in files:
        (found.pictures if is_image(path) else found.others).append(path)


def entries(folder: str, found: Found) -> tuple[list[str], list[str]]:
    """The sorted paths of the files and of the folders directly in a folder, without hidden ones.

    Folders that operating systems make are added to `found`.

    Raises:
        PermissionError: there is no permission to list the folder or to enter it.
    """
    if not os.access(folder, os.X_OK):  # without it a folder may still be listed
        raise PermissionError(13, "Permission denied", folder)
    with os.scandir(folder) as scan:
        every = sorted(scan, key=lambda entry: entry.path)
    files: list[str] = []
    folders: list[str] = []
    for entry in every:
        name = entry.name.lower()
        if (name in _SYSTEM_FOLDERS or name.startswith((".trash-", "found.0"))) and _is_folder(entry):
            found.system.append(entry.path)
            continue
        if name.startswith(".") or name in _SYSTEM_FILES:
            continue
        if _is_folder(entry):
            folders.append(entry.path)
        elif not _is_pipe_or_device(entry):
            files.append(entry.path)
    return files, folders


def _is_session(folder: str) -> bool:
    """Whether a run made this folder, which has the layout of `lib.session.folder.SessionFolder`."""
    return os.path.isfile(os.path.join(folder, "config.yaml")) and os.path.isdir(os.path.join(folder, "checkpoint"))


def _is_folder(entry: os.DirEntry) -> bool:
    # on a link to itself entry.is_dir() raises an error; os.path.isdir returns False
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_pipe_or_device(entry: os.DirEntry) -> bool:
    """Whether reading this would never end. A dangling link counts as a file; reading it raises an error."""
    if not entry.is_symlink():
        return not entry.is_file()
    return os.path.exists(entry.path) and not os.path.isfile(entry.path)


def canonical_name(name: str) -> str:
    """One spelling (Unicode's NFC) of names that look alike: é is one letter or e and an accent (NFD).

    Bytes that are not UTF-8 are kept.
    """
    return unicodedata.normalize("NFC", name)


def counted(names: Counter) -> str:
    """`3 .txt, 1 .mov`, the most frequent first."""
    every = names.most_common()
    text = ", ".join(f"{count:,} {one_line(name)}" for name, count in every[:_NAMED])
    more = sum(count for _, count in every[_NAMED:])
    return text + (f" and {more:,} others" if more else "")


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower() or "nameless"


def first_possible_picture(paths: Iterable[str]) -> Optional[str]:
    """The first file that may be a picture: its suffix is not that of a text, table or annotation."""
    return next((path for path in paths if _ending(path) not in _TEXTS), None)


_TEXTS = frozenset((
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log",
    ".html", ".htm", ".py", ".sh", ".ipynb", ".cache", ".url", ".lnk", ".sha1", ".sha256", ".md5",
))  # fmt: skip
