"""Main memory: its size, the allocator's settings, and out-of-memory errors."""

import ctypes
import os
import sys
from pathlib import Path

from lib.runtime.threads import control_groups, read_system_file

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
KEEP = 1 << 30
TOP_PAD = 64 << 20


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that the machine has and this process's cgroups allow. `root`: folder of /proc and /sys."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, version in control_groups(root, "memory"):
        limit = read_system_file(group / ("memory.limit_in_bytes" if version == 1 else "memory.max"))
        if limit is not None and limit.isdigit():  # "max": no limit
            limits.append(int(limit))
    return min(limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that Python, or PyTorch on a CPU or a GPU, ran out of memory."""
    # PyTorch 1.13 added a class for GPUs; there is none for main memory
    words = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in words for part in ("out of memory", "DefaultCPUAllocator"))
    )


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory, which the next training step needs again.

    By default malloc maps every large block again, which costs page faults in each step. The setting concerns the
    whole process, so main.py makes it and `and_discovery` does not.

    Returns:
        whether the C library accepted it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEEP), mallopt(M_TOP_PAD, TOP_PAD)])
