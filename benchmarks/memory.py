"""How much memory a call needs beyond what was there before it."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Optional

import torch

from lib.allocator import keep_freed_memory

Preparation = Callable[..., Callable[[], object]]


def peak_beyond(prepare: Preparation, *arguments: object, device: torch.device) -> Optional[int]:
    """Bytes that `prepare(*arguments)()` takes at its peak beyond what `prepare` holds, in a process of its own.

    On a CPU they are the process's resident pages; None where the system does not let their peak be read.
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
    keep_freed_memory()
    function = prepare(*arguments)
    torch.ones(300, 300) @ torch.ones(300, 300)  # threads and their buffers exist now
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        connection.send(torch.cuda.max_memory_allocated(device) - before)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    except OSError:
        connection.send(None)
        return
    before = _resident_peak()
    function()
    connection.send(_resident_peak() - before)


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
