"""Which process of a run this is, as torchrun tells it. Known before PyTorch is loaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessInfo:
    """One of `size` processes, and one of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "ProcessInfo":
        """From the variables that torchrun sets; alone without them."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(environment.get(name, "").isdigit() for name in names):
            return cls()
        return cls(*(int(environment[name]) for name in names), launched=True)
