"""Which signals a process that loads images obeys: its parent's alone."""

import os
import signal
import threading


def obey_the_parent_alone(worker: int) -> None:
    """For `worker_init_fn` of a DataLoader, in a process without other threads, as a fork leaves it.

    Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job. The parent stops at its next
    step, for which it may still want images. A process that is still there when the parent ends gets a SIGTERM from it,
    and the parent waits.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where torch's own handler ends this process
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of threads started from now on, too
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
