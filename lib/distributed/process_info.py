"""Rank and world size as torchrun sets them, known before PyTorch is imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessInfo:
    """Process `rank` of `size`, and `local_rank` of the `local_size` on this machine.

    `launched` tells whether a launcher such as torchrun started it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "ProcessInfo":
        """Reads the variables that torchrun sets; without them the process is the only one."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(environment.get(name, "").isdigit() for name in names):
            return cls()
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
        return cls(rank, size, local_rank, local_size, launched=True)
