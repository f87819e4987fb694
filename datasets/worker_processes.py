"""Processes that load images: they ignore what is meant for a whole job, and their parent can still end them."""

import signal
import sys
from typing import Any, Optional

ON_LINUX = sys.platform.startswith("linux")


def ignore_signals_to_all(worker: int) -> None:
    """For `worker_init_fn` of a DataLoader.

    Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job. The parent stops at its next
    step, for which it may still want images. Where `context` gives nothing, SIGTERM keeps its effect.
    """
    for number in (signal.SIGINT, signal.SIGHUP, *([signal.SIGTERM] if ON_LINUX else [])):
        signal.signal(number, signal.SIG_IGN)


def context() -> Optional[Any]:
    """The `multiprocessing_context` of a DataLoader whose processes ignore SIGTERM; None: Python's default.

    Python ends its child processes by SIGTERM when it exits, and then waits for them; so does torch with those that
    do not end by themselves. Here they get SIGKILL instead. They are forked, so that they share the images.
    """
    if not ON_LINUX:
        return None
    from multiprocessing.context import ForkContext, ForkProcess
    from multiprocessing.popen_fork import Popen

    class KillingPopen(Popen):
        def terminate(self) -> None:
            self.kill()

    class LoaderProcess(ForkProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Popen:  # multiprocessing asks this for what starts the process
            return KillingPopen(process_obj)

    class LoaderContext(ForkContext):
        Process = LoaderProcess

    return LoaderContext()
