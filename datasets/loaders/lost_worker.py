"""When a process that loads images dies: one clear line instead of torch's traceback."""

# Not `signal`, whose functions go through an enum that, before Python 3.11, leaves a cycle of an exception and the
# frames of all callers: workers would stay until the garbage collector came.
import _signal
import signal
import threading
from typing import Any, Callable, Optional

from lib.errors import RunError

_TORCH_SAYS = "DataLoader worker"  # how its messages about dead workers begin, in all releases


class LostWorkers:
    """Hears of loader processes that have died, in place of torch, and keeps it until somebody asks.

    torch learns of a death by the signal that a child has ended, and raises its RuntimeError from there, in whatever
    code is running at that moment: in the middle of writing a checkpoint, say. Here it waits for the next batch.
    """

    def __init__(self, torchs_handler: Callable[[int, Any], Any]):
        self._handler = torchs_handler
        self._heard: Optional[str] = None

    def __call__(self, number: int, frame: Any) -> None:
        """The handler of the signal."""
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            if not _is_about_workers(error):
                raise
            self._heard = str(error)

    def take(self) -> Optional[RunError]:
        """What has been heard since this was asked last."""
        heard, self._heard = self._heard, None
        return None if heard is None else _run_error(heard)

    def explain(self, error: RuntimeError) -> Optional[RunError]:
        """What an error says about a dead worker; None for any other error.

        torch raises it also when it has waited long enough for a batch. What the signal said tells more.
        """
        return (self.take() or _run_error(str(error))) if _is_about_workers(error) else None


def watch() -> LostWorkers:
    """Who hears of dead loader processes from now on.

    To be called after a loader has started its processes, which is when torch begins to listen.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return LostWorkers(lambda number, frame: None)  # torch does not listen either
    handler = _signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, LostWorkers):
        return handler
    watching = LostWorkers(handler if callable(handler) else lambda number, frame: None)
    if callable(handler):
        _signal.signal(signal.SIGCHLD, watching)
    return watching


def _is_about_workers(error: RuntimeError) -> bool:
    return str(error).startswith(_TORCH_SAYS)


def _run_error(message: str) -> RunError:
    reason = " ".join(message.split()).rstrip(".")
    return RunError(
        f"a process that loads images is gone: {reason}. If memory ran out, lower --workers-num, --prefetch or "
        "--batch-size; go on from the last checkpoint with --resume"
    )
