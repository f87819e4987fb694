"""One run at a time in a session."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Optional

from lib.config.names import shown
from lib.errors import UserError
from lib.runtime.atomic import writing

NAME = "session.lock"
ENDED = "ended"


class SessionLock:
    """A file in the session's folder that says which process writes there: its number, host and time of start.

    A lock that was left by a process of this host that is gone is taken over; the time of start tells that process
    from a later one of the same number. A process of another host cannot be asked: its lock stands until somebody
    deletes the file.

    Args:
        folder: of the session.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._mine = {"pid": os.getpid(), "host": socket.gethostname(), "process": _identity(os.getpid())}
        self._mine["since"] = time.strftime("%Y-%m-%d %H:%M:%S")

    def take(self) -> None:
        """Take the lock.

        Raises:
            UserError: another run has it; the message says which.
            RunError: it cannot be written.
        """
        own = self._path.with_name(f"{NAME}.{self._mine['host']}.{os.getpid()}.tmp")
        try:
            with writing(self._path):
                own.write_text(json.dumps(self._mine), encoding="utf-8")
                while not _put(own, self._path):
                    if self._take_over(own):
                        return
        finally:
            own.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back, if it is still ours: the folder may have been removed, or the lock by hand."""
        with contextlib.suppress(OSError):
            if _read(self._path) == self._mine:
                self._path.unlink()

    def _take_over(self, own: Path) -> bool:
        """Put our lock in the place of a stale one. False if it has gone in the meantime.

        Of several processes that find the same stale lock one at a time may look at it; the next sees the new one.
        """
        try:
            file = open(self._path, "r+b")  # noqa: SIM115  it is closed below
        except FileNotFoundError:
            return False
        with file:
            with contextlib.suppress(OSError):  # a file system without locks: then it is a matter of microseconds
                fcntl.lockf(file, fcntl.LOCK_EX)
            if not self._path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                return False
            # through this very file: closing another of the same would give the lock up
            self._refuse_if_held(_parsed(file.read().decode("utf-8", "replace")))
            os.replace(own, self._path)
            return True

    def _refuse_if_held(self, holder: dict[str, Any]) -> None:
        pid, host = holder.get("pid"), holder.get("host")
        if type(pid) is not int or pid <= 0 or not isinstance(host, str):
            return  # cut short when its disk was full or its machine went down, or no lock of ours
        since = shown(str(holder.get("since")))
        if host != self._mine["host"]:
            raise UserError(
                f"session {self._path.parent} is in use by process {pid} on host {shown(host)} since {since}; if that "
                f"run is gone, delete {self._path}"
            )
        if _alive(pid, holder.get("process")):
            raise UserError(
                f"session {self._path.parent} is in use by process {pid} on this host ({shown(host)}) since {since}; "
                f"wait until it has ended, or stop it; if that is another program, delete {self._path}"
            )


def _put(own: Path, path: Path) -> bool:
    """Give our file the lock's name if nothing has it: a link comes into being whole or not at all."""
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(own.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(pid: int, process: Any) -> bool:
    """Whether the process that wrote the lock still runs."""
    now = _identity(pid)
    if now == ENDED:
        return False
    if now is not None and process is not None:
        return now == process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _identity(pid: int) -> Optional[str]:
    """Tells a process from others that had or will have its number: the machine's start and its own (on Linux).

    `ENDED` for one that its parent has not asked about yet, a zombie; None where nothing can be found out.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # fields 3 and 22 of proc(5)
    return ENDED if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"
