"""The session folder and the names inside it."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from lib.config.names import shown
from lib.errors import RunError, UserError
from lib.runtime.atomic import replace_text

CHECKPOINT_NAME = re.compile(r"(\d{4,})-(\d{5,})(-best|-e(\d{4,})-s(\d{6,}))?\.ckpt")


class SessionFolder:
    """`<sess_dir>/<name>/` with the files and folders of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoint"
        self.tensorboard = path / "tfboard"
        self.log = path / "log.txt"
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.starts = path / "starts.jsonl"
        self.final = path / "final.json"
        self.report = path / "report.html"
        self.features = path / "features.npz"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_one(self) -> bool:
        """Whether there is such a folder, and a run made it, as far as its contents tell."""
        return self.config.is_file() and self.checkpoints.is_dir()

    @classmethod
    def create(cls, sess_dir: str, name: Optional[str]) -> "SessionFolder":
        """A new folder; without a name, one named after the time that no other run has.

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
        """The session whose checkpoint folder a file is in, or None if that is no session's.

        By its path as given: where a link in a session's folder leads to is no session that was asked for.
        """
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
                f"session {path} exists; go on in it with --resume {path}, or choose another --session"
            ) from None
        return path

    @staticmethod
    def _create_stamped(base: Path) -> Path:
        """mkdir decides who has a name: of two runs started in one second, one gets a suffix."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1, 1000):
            path = base / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                continue
        raise RunError(f"no free session name for {stamp} in {base}")

    def checkpoint_file(self, round_number: int, anchors: int, best: bool = False) -> Path:
        """`RRRR-AAAAA.ckpt` (round and number of anchors), the last epoch; or the best epoch of the round."""
        return self.checkpoints / f"{round_number:04d}-{anchors:05d}{'-best' if best else ''}.ckpt"

    def earlier_file(self, round_number: int, anchors: int, epoch: int, step: int) -> Path:
        """`RRRR-AAAAA-eEEEE-sSSSSSS.ckpt`: what was the last checkpoint of the round before the present one."""
        return self.checkpoints / f"{round_number:04d}-{anchors:05d}-e{epoch:04d}-s{step:06d}.ckpt"

    def set_aside_after(
        self, round_number: int, place: tuple[int, int], place_of: Callable[[Path], tuple[int, int]]
    ) -> None:
        """Move the checkpoints of a future that is being given up to checkpoint/superseded/, and clear what a killed
        write left.

        Without this, going on from an early checkpoint and then from the session would take up the old future.

        Args:
            round_number, place: the point that is gone on from; the place is (epoch, step).
            place_of: reads the place of a checkpoint; asked about files of the same round only. One that cannot be
                read (UserError) is set aside too.
        """
        for left in self.checkpoints.glob("*.ckpt.*.tmp"):
            if left.is_file():
                left.unlink()

        def later(path: Path) -> bool:
            try:
                return place_of(path) > place
            except UserError:
                return True

        for path in sorted(self.checkpoints.glob("*.ckpt")):
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match is None or int(match.group(1)) < round_number:
                continue
            if int(match.group(1)) > round_number or later(path):
                aside = self.checkpoints / "superseded"
                aside.mkdir(exist_ok=True)
                path.replace(_free_name(aside / path.name))

    def checkpoints_by_round(self) -> dict[int, Path]:
        """The checkpoint of the last epoch of each round, or of its best where there is no other; rounds in order."""
        found: dict[int, tuple[bool, Path]] = {}
        for path in self.checkpoints.glob("*.ckpt"):
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match:
                number, candidate = int(match.group(1)), (match.group(3) is None, path)
                found[number] = max(found.get(number, candidate), candidate)
        return {number: found[number][1] for number in sorted(found)}

    def write_config(self, text: str) -> None:
        """config.yaml; one of other options is kept beside it, one that differs in comments alone stays."""
        if self.config.exists():
            before = self.config.read_text(encoding="utf-8", errors="surrogateescape")
            if _without_comments(before) == _without_comments(text):
                return
            replace_text(_free_name(self.path / "config.before.yaml"), before)
        replace_text(self.config, text)


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def _free_name(path: Path) -> Path:
    """The path, or with a number where that is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def check_own_files(session: SessionFolder) -> None:
    """What is written into the folder must not land somewhere else, nor wait for a reader that never comes.

    To be asked before anything is written into a session that was there before.

    Raises:
        UserError: something in it is a link, a pipe or the like, or a folder that has the name of a file.
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
                    f"session {session.path}: {shown(path)} is a link; a run writes into its own folder alone: put "
                    "there what it leads to, or remove it"
                )
            # a file that has gone while we look is no matter
            if not os.path.isdir(path) and not os.path.isfile(path) and os.path.lexists(path):
                raise UserError(f"session {session.path}: {shown(path)} is no ordinary file; remove it")


def checkpoints_of(session: Path) -> list[Path]:
    """The checkpoints in a session folder, newest first; in a round: the last, those before it, and its best."""
    found: list[tuple[int, int, int, int, Path]] = []
    for path in (session / "checkpoint").glob("*.ckpt"):
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match:
            kind = 2 if match[3] is None else 0 if match[3] == "-best" else 1
            found.append((int(match[1]), kind, int(match[4] or 0), int(match[5] or 0), path))
    return [path for *_, path in sorted(found, reverse=True)]


def newest_checkpoint(session: Path) -> Path:
    """The first of `checkpoints_of`.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_of(session)
    if not found:
        raise UserError(f"there is no checkpoint in {session / 'checkpoint'}")
    return found[0]


def _time_of_change(file: Path) -> int:
    """In nanoseconds; 0 for a file that has gone in the meantime, and for a link that leads nowhere."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def find_checkpoint(resume: str, sess_dir: str) -> Path:
    """The file that `--resume` means: a checkpoint, a session folder, or `last` (the newest session that has one).

    Raises:
        UserError: nothing is there.
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
