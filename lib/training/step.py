"""One training step: forward, loss, backward, memory bank, optimiser; and the watch for non-finite numbers."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from lib.compat import norms
from lib.method.memory_bank import GlobalBatch, MemoryBank
from lib.method.objective import and_loss
from lib.nn.embedder import Embedder

_NONE = -1


class NotFinite(NamedTuple):
    """The first batch of an epoch with a non-finite loss or gradient: its number from 0, and which of the two."""

    step: int
    what: str


class FiniteWatch:
    """Counts the batches of an epoch and records the first with a non-finite loss or gradient.

    The counts stay on the device, in the same memory: a CUDA graph can capture them, and no step waits.
    """

    def __init__(self, device: torch.device):
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.full((2,), _NONE, dtype=torch.int64, device=device)  # of the loss, of the gradient

    def begin(self, step: int) -> None:
        """Start an epoch, or resume it, at batch `step`."""
        self._count.fill_(step)
        self._first.fill_(_NONE)

    @torch.no_grad()
    def update(self, loss: Tensor, gradients: Iterable[Tensor] = ()) -> None:
        """Count a batch: its loss, and the gradients of the optimiser step that it ends, if it ends one."""
        # a sum or norm is finite if all its terms are, unless they are too large to learn from
        gradients = list(gradients)
        if norms is not None and gradients and gradients[0].is_cuda:
            sums = list(norms(gradients))
        else:
            sums = [gradient.sum() for gradient in gradients]
        total = torch.stack(sums).sum() if sums else torch.zeros_like(loss)
        bad = ~torch.isfinite(torch.stack([loss.float(), total.float()]))
        self._first.copy_(torch.where(bad & (self._first == _NONE), self._count, self._first))
        self._count.add_(1)

    def found(self) -> Optional[NotFinite]:
        """The first batch with a non-finite number, or None. Waits for the device."""
        loss, gradient = self._first.tolist()
        found = [NotFinite(step, what) for step, what in ((loss, "loss"), (gradient, "gradient")) if step != _NONE]
        return min(found, default=None, key=lambda each: each.step)


class Step:
    """Trains on one batch. With one process nothing in it waits for the device.

    With several processes each trains on its part of the batch, and all take the same step. GPUs wait where they
    exchange sizes: in each synchronised batch norm, and once for the bank.

    Args:
        embedder: the network.
        bank: the memory bank, updated in place.
        optimizer: of the network's parameters.
        temperature: tau.

    Attributes:
        watch: checks the loss and the gradients of every batch.
    """

    def __init__(self, embedder: Embedder, bank: MemoryBank, optimizer: Optimizer, temperature: float):
        self.embedder, self.bank, self.optimizer, self.temperature = embedder, bank, optimizer, temperature
        self.watch = FiniteWatch(bank.memory.device)

    def __call__(
        self, images: Tensor, members: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """Train on a batch.

        Args:
            images: (B, 3, S, S), members: (B, 1 + K) sets that begin with the image's own row, as
                `Neighbourhoods.members` gives them; with several processes this one's part.
            size: of the batch, in all processes together.
            share: of the batch in the gradient, where several batches make one optimiser step.
            first, last: whether the batch begins and ends such a group.

        Returns:
            the mean loss of the batch, a scalar on the device.
        """
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        shard = self.bank.shard
        with nullcontext() if last else self.embedder.no_sync():
            features = self.embedder(images)  # (B, D)
            batch = GlobalBatch.gather(features, members, shard.world, shard.world.shares(size))
            loss = and_loss(features, self.bank.memory, members, self.temperature, shard=shard, batch=batch)
            (loss if share == 1.0 else loss * share).backward()
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        self.watch.update(loss.detach(), [p.grad for p in parameters if p.grad is not None] if last else ())
        self.bank.update(batch.indices, batch.features)
        if last:
            self.optimizer.step()
        return loss.detach()
