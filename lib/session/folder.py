"""The session folder: creating it, the paths of its files, and whether it is safe to write into."""

import os
import time
from pathlib import Path
from typing import Optional

from lib.errors import RunError, UserError, shown
from lib.runtime.atomic import free_name, replace_text


class SessionFolder:
    """`<sess_dir>/<name>/` with the files and folders of a run."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.checkpoints = path / "checkpoint"
        self.tensorboard = path / "tfboard"
        self.log = path / "log.txt"
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.starts = path / "starts.jsonl"
        self.final = path / "final.json"
        self.report = path / "report.html"
        self.features = path / "features.npz"

    @classmethod
    def create(cls, sess_dir: str, name: Optional[str]) -> "SessionFolder":
        """Make a new folder; without a name, one named after the time.

        Raises:
            UserError: the name is taken, or the folder cannot be made.
        """
        base = Path(sess_dir)
        try:
            base.mkdir(parents=True, exist_ok=True)
            path = cls._create_named(base, name) if name else cls._create_stamped(base)
            session = cls(path)
            session.checkpoints.mkdir()
        except OSError as error:
            raise UserError(f"the session folder cannot be made: {error}; choose another --sess-dir") from None
        return session

    @classmethod
    def of_checkpoint(cls, file: Path) -> Optional["SessionFolder"]:
        """The session that a checkpoint file is in; None for a file elsewhere. Links are not followed."""
        folder = Path(os.path.abspath(file)).parent
        session = cls(folder.parent)
        return session if folder.name == "checkpoint" and session.config.exists() else None

    @staticmethod
    def _create_named(base: Path, name: str) -> Path:
        path = base / name
        try:
            path.mkdir()
        except FileExistsError:
            raise UserError(
                f"session {path} exists; resume it with --resume {path}, or choose another --session"
            ) from None
        return path

    @staticmethod
    def _create_stamped(base: Path) -> Path:
        """Make a folder named after the time; of two runs that start in the same second, one gets a suffix."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1, 1000):
            path = base / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                continue
        raise RunError(f"no free session name for {stamp} in {base}")

    def write_config(self, text: str) -> None:
        """Write config.yaml. One with other options is kept as config.before.yaml; one that differs in comments alone
        stays as it is.

        Raises:
            RunError: it cannot be written.
        """
        if self.config.exists():
            before = self.config.read_text(encoding="utf-8", errors="surrogateescape")
            if _without_comments(before) == _without_comments(text):
                return
            replace_text(free_name(self.path / "config.before.yaml"), before)
        replace_text(self.config, text)


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def check_own_files(session: SessionFolder) -> None:
    """Check that the folder of an earlier run, which may come from somebody else, is safe to write into.

    Through a link a run would write somewhere else, and a pipe would block it.

    Raises:
        UserError: the folder holds a link, a pipe or the like, or a folder with the name of a file.
    """
    texts = (session.log, session.config, session.metrics, session.starts, session.final)
    for file in (*texts, session.report, session.features):
        if file.is_dir():
            raise UserError(f"session {session.path}: {file} is a folder where a file belongs; move it away")
    for folder, folders, files in os.walk(session.path):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                raise UserError(
                    f"session {session.path}: {shown(path)} is a link; a run writes into its own folder alone: "
                    "replace it by what it links to, or remove it"
                )
            # a file may be deleted in the meantime
            if not os.path.isdir(path) and not os.path.isfile(path) and os.path.lexists(path):
                raise UserError(f"session {session.path}: {shown(path)} is not a regular file; remove it")
