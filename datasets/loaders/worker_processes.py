"""DataLoader workers: start within the limits of the machine, transfer of their batches, detection of their deaths."""

# Not `signal`, whose functions go through an enum that, before Python 3.11, leaves a cycle of an exception and the
# frames of all callers: workers would stay until the garbage collector came.
import _signal  # type: ignore[import-not-found]  # typeshed does not list this private module
import contextlib
import errno
import itertools
import logging
import math
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from lib.errors import RunError
from lib.logger.console import LOGGER

log = logging.getLogger(LOGGER)

_TORCH_SAYS = "DataLoader worker"  # how its messages about dead workers begin, in all releases

ON_LINUX = sys.platform.startswith("linux")

_FILES_OF_A_WORKER = 4
"""Open files that a worker takes in its parent: both ends of the pipe of its keys, and two that report its exit."""

_FILES_OF_A_RUN = 24
"""Open files reserved for checkpoints, logs, the report's fonts, and another loader's result pipe."""


def ignore_signals(worker: int) -> None:
    """For `worker_init_fn` of a DataLoader.

    Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all processes of a job. The parent stops at its
    next step, for which it may still need images. Without `fork_context` (not on Linux) SIGTERM keeps its effect.
    """
    for number in (signal.SIGINT, signal.SIGHUP, *([signal.SIGTERM] if ON_LINUX else [])):
        signal.signal(number, signal.SIG_IGN)


def fork_context() -> Optional[Any]:
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

    class WorkerProcess(ForkProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Popen:  # multiprocessing starts the process by it
            return KillingPopen(process_obj)

    class WorkerContext(ForkContext):
        Process = WorkerProcess

    return WorkerContext()


def kill_workers(loader: DataLoader) -> None:
    """Kill the workers of a loader: torch would wait 5 seconds for each worker that ignores SIGTERM."""
    own_kind = getattr(loader.multiprocessing_context, "Process", None)
    for process in multiprocessing.active_children():
        if own_kind is not None and type(process) is own_kind:
            process.kill()
            process.join()


def end_workers(loader: DataLoader) -> None:
    """End the workers of a loader that has persistent ones, as torch does once nothing refers to its iterator any more.

    Where batches were pinned for a GPU, workers outlived a consumer that had stopped (PyTorch 2.11); the cause was not
    found.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def allowed_workers(wanted: int) -> int:
    """How many of the wanted workers the limit of open files allows; the soft limit is raised if possible."""
    if wanted == 0:
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    try:
        others = len(os.listdir("/dev/fd")) + _FILES_OF_A_RUN
    except OSError:  # the number of open files is unknown
        return wanted
    needed = others + wanted * _FILES_OF_A_WORKER
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    workers = max(0, min(wanted, (soft - others) // _FILES_OF_A_WORKER))
    if workers < wanted:
        _warn_once(
            f"workers   {f'{workers} of {wanted} start' if workers else 'none: this process loads the images'}, since "
            f"only {soft} files may be open; for all of them: ulimit -n {needed}"
        )
    return workers


def start_workers(loader: DataLoader) -> Iterator[Any]:
    """`iter(loader)`. If its workers cannot start, this process loads the images, and a warning says why."""
    with _silent_finalisers():  # torch's, of an iterator that was only half constructed
        try:
            return iter(loader)
        except OSError as error:
            reason = _reason(error)
        except RuntimeError as error:
            if "start new thread" not in str(error):  # Python's message
                raise
            reason = _reason(OSError(errno.EAGAIN, "a thread cannot be started"))
        kill_workers(loader)  # those that did start
    _warn_once(f"workers   none: this process loads the images, which is slower, since {reason}")
    return iter(
        DataLoader(
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),
        )
    )


def _reason(error: OSError) -> str:
    """Which resource is short, and how to get more of it."""
    said = error.strerror or str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too few files may be open ({said}); raise the limit (ulimit -n)"
    if error.errno == errno.EAGAIN:
        return f"too few processes may run ({said}); raise the limit (ulimit -u, or the container's --pids-limit)"
    if error.errno == errno.ENOMEM:
        return f"memory is short ({said}); lower --workers-num"
    return (
        f"their semaphores cannot be made in /dev/shm ({said}); it must exist and be writable (docker run "
        "--tmpfs /dev/shm), or choose --workers-num 0"
    )


_warned: set[str] = set()


def _warn_once(line: str) -> None:
    """Log a warning once: every epoch starts loaders of its own."""
    if line not in _warned:
        _warned.add(line)
        log.warning("%s", line)


@contextlib.contextmanager
def _silent_finalisers() -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


class DeadWorkers:
    """A SIGCHLD handler that holds back torch's error about a dead worker until the next batch is requested.

    torch's own handler raises its RuntimeError in whatever code runs at that moment, such as the writing of a
    checkpoint.
    """

    def __init__(self, torchs_handler: Callable[[int, Any], Any]):
        self._handler = torchs_handler
        self._message: Optional[str] = None

    def __call__(self, number: int, frame: Any) -> None:
        """Handles the signal."""
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            if not _is_about_workers(error):
                raise
            self._message = str(error)

    def pop_error(self) -> Optional[RunError]:
        """The error of a worker that has died since the last call; None if none has."""
        message, self._message = self._message, None
        return None if message is None else _run_error(message)

    def explain(self, error: RuntimeError) -> Optional[RunError]:
        """The RunError for torch's error about a dead worker; None for any other error.

        torch raises such an error also when a batch does not arrive in time; the signal's message has more details.
        """
        return (self.pop_error() or _run_error(str(error))) if _is_about_workers(error) else None


def watch_workers() -> DeadWorkers:
    """Installs the handler of SIGCHLD that records dead workers, and returns it.

    To be called after a loader has started its workers, which is when torch installs its own handler.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return DeadWorkers(lambda number, frame: None)  # torch installs no handler either
    handler = _signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, DeadWorkers):
        return handler
    watching = DeadWorkers(handler if callable(handler) else lambda number, frame: None)
    if callable(handler):
        _signal.signal(signal.SIGCHLD, watching)
    return watching


def _is_about_workers(error: RuntimeError) -> bool:
    return str(error).startswith(_TORCH_SAYS)


def _run_error(message: str) -> RunError:
    reason = " ".join(message.split()).rstrip(".")
    return RunError(
        f"a DataLoader worker died: {reason}. If memory ran out, lower --workers-num, --prefetch or "
        "--batch-size; resume from the last checkpoint with --resume"
    )


class SharedBatches:
    """Shared memory in which workers leave the images of their batches for the parent process.

    torch passes each batch in a file of /dev/shm, which holds 64 MiB in a Docker container, and through a socket in
    TMPDIR. If either fails, it fails in a thread of the worker, and the parent waits for ever. This class needs
    neither: it is one anonymous mapping, made before the workers are forked. Each worker has `prefetch` + 1 slots and
    uses them in turn: `prefetch` batches can be loading or ready while the parent copies another.

    Args:
        workers, prefetch: as the DataLoader's, at least 1.
        numbers: most float32 values of a batch; larger batches go through a pipe.
    """

    def __init__(self, workers: int, prefetch: int, numbers: int):
        self._slots, self._numbers = prefetch + 1, numbers
        self._mapping = mmap.mmap(-1, workers * self._slots * numbers * 4)
        self._memory = np.frombuffer(self._mapping, np.float32)
        self._used = 0  # slots, by this worker
        self.key = next(_keys)
        _mappings[self.key] = self

    @classmethod
    def of(cls, workers: int, prefetch: int, numbers: int) -> Optional["SharedBatches"]:
        """Shared memory, or None where workers do not inherit it, memory is short, or there is nothing to share."""
        if not ON_LINUX or workers * numbers == 0:
            return None
        try:
            return cls(workers, prefetch, numbers)
        except OSError:
            return None

    def clear(self) -> None:
        """Return the memory to the system until the next batch; the parent must have received all batches."""
        with contextlib.suppress(OSError):  # a kernel without it keeps the memory
            self._mapping.madvise(mmap.MADV_REMOVE)

    def put(self, images: Sequence[Tensor]) -> Optional[tuple[int, tuple[int, ...]]]:
        """Called in a worker: store images of one shape. Returns the slot and the shape, or None if they do not fit."""
        shape = (len(images), *images[0].shape)
        if math.prod(shape) > self._numbers or images[0].dtype != torch.float32:
            return None
        worker = get_worker_info()
        assert worker is not None
        slot = worker.id * self._slots + self._used % self._slots
        self._used += 1
        torch.stack(tuple(images), out=self.at(slot, shape))
        return slot, shape

    def at(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """The images in a slot."""
        start = slot * self._numbers
        return torch.from_numpy(self._memory[start : start + math.prod(shape)].reshape(shape))


_keys = itertools.count()
_mappings: "weakref.WeakValueDictionary[int, SharedBatches]" = weakref.WeakValueDictionary()


class WorkerBatch:
    """A batch that a worker sends to the parent process, without torch's own shared memory.

    Args:
        images: (C, H, W) each, of one shape.
        rows: their row numbers.
        shared: the memory that carries the images; None: they are pickled.
    """

    def __init__(self, images: Sequence[Tensor], rows: Sequence[int], shared: Optional[SharedBatches]):
        self._rows = tuple(rows)
        self._slot = None if shared is None else shared.put(images)
        self._key = None if shared is None else shared.key
        self._images = torch.stack(tuple(images)).numpy() if self._slot is None else None

    def receive(self) -> tuple[Tensor, Tensor]:
        """In the parent: images (B, C, H, W) of its own, and row numbers (B,) int64."""
        return self._batch().clone(), torch.tensor(self._rows, dtype=torch.int64)

    def pin_memory(self, *device: object) -> tuple[Tensor, Tensor]:
        """The same in page-locked memory. A DataLoader's thread calls this."""
        return self._batch().pin_memory(), torch.tensor(self._rows, dtype=torch.int64).pin_memory()

    def _batch(self) -> Tensor:
        if self._slot is None or self._key is None:
            return torch.from_numpy(self._images)
        return _mappings[self._key].at(*self._slot)
