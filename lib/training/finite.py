"""Whether loss and gradients are finite: asked of every step on the device, answered when it is waited for anyway."""

from collections.abc import Iterable
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from lib.compat import sums_or_norms

_NONE = -1


class NotFinite(NamedTuple):
    """The first batch of an epoch that went wrong: its number from 0, and what was not finite."""

    step: int
    what: str


class FiniteWatch:
    """Counts the batches of an epoch, and keeps the numbers of the first whose loss or gradient was not finite.

    All of it stays on the device and in the same memory, so that a step can be captured in a CUDA graph.
    """

    def __init__(self, device: torch.device):
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.full((2,), _NONE, dtype=torch.int64, device=device)  # of the loss, of the gradient

    def begin(self, step: int) -> None:
        """An epoch begins, or is gone on with, at batch `step`."""
        self._count.fill_(step)
        self._first.fill_(_NONE)

    @torch.no_grad()
    def see(self, loss: Tensor, gradients: Iterable[Tensor] = ()) -> None:
        """A batch with its loss, and the gradients of the optimiser step if it ends one."""
        # sums and norms are finite if all terms are, unless these are so large that nothing could be learnt from them
        sums = sums_or_norms(list(gradients))
        total = torch.stack(sums).sum() if sums else torch.zeros_like(loss)
        bad = ~torch.isfinite(torch.stack([loss.float(), total.float()]))
        self._first.copy_(torch.where(bad & (self._first == _NONE), self._count, self._first))
        self._count.add_(1)

    def found(self) -> Optional[NotFinite]:
        """The first that went wrong, if any. Waits for the device."""
        loss, gradient = self._first.tolist()
        found = [NotFinite(step, what) for step, what in ((loss, "loss"), (gradient, "gradient")) if step != _NONE]
        return min(found, default=None, key=lambda each: each.step)
