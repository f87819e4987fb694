"""How much memory a call needs beyond what was there before it."""

import ctypes
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Optional

import torch

M_MMAP_THRESHOLD, LARGE = -3, 128 << 10  # from glibc's malloc.h, and its default

Preparation = Callable[..., Callable[[], object]]


def peak_beyond(prepare: Preparation, *arguments: object, device: torch.device) -> Optional[int]:
    """Bytes that `prepare(*arguments)()` takes at its peak beyond what `prepare` holds, in a process of its own.

    On a CPU they are the process's resident pages, while whatever is freed goes back to the system; a run keeps it and
    may hold somewhat more. None where the system or the C library cannot do that.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, device, prepare, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _measure(connection: Connection, device: torch.device, prepare: Preparation, arguments: tuple) -> None:
    gives_back = _give_back_large()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    function = prepare(*arguments)
    square = torch.ones(300, 300, device=device)
    square @ square  # threads, libraries and their buffers exist now
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        connection.send(torch.cuda.max_memory_allocated(device) - before)
        return
    # what prepare freed and malloc kept would be used again unseen
    if not (gives_back and _give_back_rest()):
        connection.send(None)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    except OSError:
        connection.send(None)
        return
    before = _resident_peak()
    function()
    connection.send(_resident_peak() - before)


def _give_back_large() -> bool:
    """Large blocks go back to the system when they are freed from now on; whether the C library can (glibc's can)."""
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
    except (OSError, AttributeError, TypeError):
        return False


def _give_back_rest() -> bool:
    """Return the pages between small blocks that nobody uses; whether the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
