"""The lock of a session folder, in which one run at a time writes."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Optional

from lib.errors import UserError, shown
from lib.runtime.atomic import lock_within, writing

NAME = "session.lock"
ENDED = "ended"
PATIENCE = 10
"""Seconds to wait for another process that is just acquiring the lock, which takes it milliseconds."""


class SessionLock:
    """session.lock: process id, host and start time of the run that writes in the folder.

    A run takes over the lock of a process of this host that has ended; its start time distinguishes that process
    from a later one of the same id. A process of another host cannot be checked: its lock stays until somebody deletes
    the file.

    Args:
        folder: of the session.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._own = {"pid": os.getpid(), "host": socket.gethostname(), "process": _identity(os.getpid())}
        self._own["since"] = time.strftime("%Y-%m-%d %H:%M:%S")

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            UserError: another run has it, and the message says which, or is acquiring it and has been suspended.
            RunError: it cannot be written.
        """
        with writing(self._path), self._opened() as file:
            self._refuse_if_held(_parsed(file.read()))
            file.seek(0)
            file.truncate()
            file.write(json.dumps(self._own).encode())
            file.flush()

    def release(self) -> None:
        """Delete the file if the lock is still this run's: the folder may be gone, or somebody may have deleted it."""
        with contextlib.suppress(OSError):
            if _parsed(self._path.read_bytes()) == self._own:
                self._path.unlink()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """The file, created if missing, and locked against other processes of this host until the block ends."""
        while True:
            with open(self._path, "a+b") as file:
                free = True
                with contextlib.suppress(OSError):  # a file system without locks: two may start in the same millisecond
                    free = lock_within(PATIENCE, fcntl.lockf, file.fileno())
                if not free:
                    raise UserError(
                        f"session {self._path.parent} is in use by a process that has started a run there and has been "
                        f"suspended; continue or stop that process (fuser {self._path} names it)"
                    )
                if self._is_current(file):
                    file.seek(0)
                    yield file
                    return

    def _is_current(self, file: IO[bytes]) -> bool:
        """Whether the path still leads to this file: its owner may have deleted the file in the meantime."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _refuse_if_held(self, holder: dict[str, Any]) -> None:
        pid, host = holder.get("pid"), holder.get("host")
        if type(pid) is not int or pid <= 0 or not isinstance(host, str):
            return  # new, cut short when its disk was full or its machine went down, or not a lock file of a run
        since = shown(str(holder.get("since")))
        if host != self._own["host"]:
            raise UserError(
                f"session {self._path.parent} is in use by process {pid} on host {shown(host)} since {since}; if that "
                f"run is gone, delete {self._path}"
            )
        if _alive(pid, holder.get("process")):
            raise UserError(
                f"session {self._path.parent} is in use by process {pid} on this host ({shown(host)}) since {since}; "
                f"wait until it has ended, or stop it; if that is another program, delete {self._path}"
            )


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(pid: int, process: Any) -> bool:
    """Whether the process that wrote the lock still runs."""
    now = _identity(pid)
    if now is not None and (now == ENDED or process is not None):
        return now == process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _identity(pid: int) -> Optional[str]:
    """Distinguishes processes with the same id, on Linux, by the start times of the machine and of the process.

    `ENDED` for one that has ended and whose parent has not read its status, a zombie; None where nothing can be
    found out.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # fields 3 and 22 of proc(5)
    return ENDED if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"
