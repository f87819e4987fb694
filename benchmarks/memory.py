"""Peak memory of a call beyond the memory in use before it."""

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

    On a CPU these are the process's resident pages, with freed memory returned to the system at once; a run keeps freed
    memory and may hold somewhat more. None where the system or the C library cannot measure this.
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
    # memory that prepare freed and malloc kept would be reused without a new page
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
    """Return large blocks to the system when they are freed. False where the C library cannot (glibc can)."""
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
    except (OSError, AttributeError, TypeError):
        return False


def _give_back_rest() -> bool:
    """Return the unused pages between small blocks to the system. False where the C library cannot."""
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
