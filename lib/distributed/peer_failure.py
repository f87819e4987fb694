"""Telling a process that another one left alone from one that failed by itself."""

_KINDS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Classes of errors of torch.distributed, by their names: PyTorch 1.10 raises a bare RuntimeError instead."""

_WORDS = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "socket timeout",
    "wait timeout",
    "caused pair closure",
    "gloo/transport",
    "nccl",
    "tcpstore",
)
"""What communication that failed says: Gloo, NCCL and the store where processes meet."""

_MISTAKES = (
    "op.preamble",
    "invalid usage",
    "invalid argument",
    "invalidusage",
    "invalidargument",
    "unhandled cuda error",
)
"""What a call says that did not fit those of the other processes, or that failed on this process's own device."""


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error says that another process has ended or cannot be reached.

    Any other error is one of this process, whatever happened to the others.
    """
    words = str(error).lower()
    if any(part in words for part in _MISTAKES):
        return False
    return type(error).__name__ in _KINDS or any(part in words for part in _WORDS)
