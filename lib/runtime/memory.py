"""How much memory there is, and what is said when there is not enough."""

import os


def physical() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ran_out(error: BaseException) -> bool:
    """Whether Python, or PyTorch on a CPU or a GPU, could not get the memory it asked for."""
    # PyTorch before 1.13 has no class of its own for it, and none has one for main memory
    words = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in words for part in ("out of memory", "DefaultCPUAllocator"))
    )
