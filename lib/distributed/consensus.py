"""What all processes of a run do at the same step, though one of them alone may have been told."""

from typing import Any, Optional

import torch
from torch import distributed

from lib.distributed.world import World


class Consensus:
    """The largest of what the processes wish for, the same number in all of them.

    Wishes travel between CPUs beside the computation, and what was wished for at one step is known at the next: no
    process waits for its device, and hardly for another process.

    Args:
        world: the processes. All must make the same calls in the same order.
    """

    def __init__(self, world: World):
        self._several, self._line = world.size > 1, world.cpu_group
        self._wish: Optional[torch.Tensor] = None
        self._exchange: Any = None

    def at_step(self, wish: int) -> int:
        """The largest wish of the call before this one, 0 at first; with one process that of this call."""
        if not self._several:
            return wish
        agreed = self._arrived()
        self._begin(wish)
        return agreed

    def now(self, wish: int) -> int:
        """The largest wish that has not been heard of yet, this one included. Waits for the others."""
        if not self._several:
            return wish
        earlier = self._arrived()
        self._begin(wish)
        return max(earlier, self._arrived())

    def _begin(self, wish: int) -> None:
        self._wish = torch.tensor([wish])
        self._exchange = distributed.all_reduce(self._wish, distributed.ReduceOp.MAX, group=self._line, async_op=True)

    def _arrived(self) -> int:
        if self._exchange is None:
            return 0
        self._exchange.wait()
        self._exchange = None
        return int(self._wish)
