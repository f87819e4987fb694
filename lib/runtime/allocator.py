"""Keeping freed memory: the large temporaries of a training step come back in the next one."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
KEEP = 1 << 30
TOP_PAD = 64 << 20


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
