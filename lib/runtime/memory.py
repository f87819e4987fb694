"""Main memory: how much there is, how the process holds on to it, and errors of running out of it."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
KEEP = 1 << 30
TOP_PAD = 64 << 20


def physical_memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or PyTorch on a CPU or a GPU, could not get the memory it asked for."""
    # PyTorch before 1.13 has no class of its own for it, and none has one for main memory
    words = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in words for part in ("out of memory", "DefaultCPUAllocator"))
    )


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to hold on to what is freed instead of returning it to the system.

    By default it maps every large block afresh, and each step pays for the page faults. A program may ask for
    this, a library must not: only the command line's path calls it.

    Returns:
        whether the C library took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEEP), mallopt(M_TOP_PAD, TOP_PAD)])
