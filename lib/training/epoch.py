"""One epoch: forward, loss, backward, bank, step."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lib.embedder import Embedder
from lib.errors import RunError
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.tiled_objective import tiled_and_loss

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images (B, 3, S, S) and their row numbers (B,)."""


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the images of the epoch, and how fast they went by."""

    loss: float
    images: int
    seconds: float


def train_epoch(
    embedder: Embedder,
    bank: MemoryBank,
    neighbourhoods: Neighbourhoods,
    optimizer: Optimizer,
    batches: Batches,
    batch_sizes: tuple[int, ...],
    temperature: float,
    iter_size: int = 1,
    report_every: int = 20,
    report: Callable[[int, float], None] = lambda images, loss: None,
) -> EpochResult:
    """Train on every batch once.

    Args:
        batch_sizes: how many images each batch holds.
        iter_size: batches whose gradients make one optimiser step. A group's gradient is the mean over
            its images, whatever the sizes of its batches; a last, smaller group makes a step of its own.
        report_every: steps between calls of `report(images since the last call, loss of the batch)`, and one at
            the end. Only then the device is waited for.

    Raises:
        RunError: the loss is not finite.
    """
    embedder.train()
    started = time.perf_counter()
    unreported = 0
    loss_sum = torch.zeros((), dtype=torch.float64, device=bank.memory.device)
    optimizer.zero_grad(set_to_none=True)
    for step, (images, indices) in enumerate(batches):
        features = embedder(images)  # (B, D)
        loss = tiled_and_loss(features, bank.memory, neighbourhoods.members(indices), temperature)

        group = step // iter_size
        images_in_group = sum(batch_sizes[group * iter_size : (group + 1) * iter_size])
        (loss * (len(indices) / images_in_group)).backward()
        bank.update(indices, features.detach())

        if (step + 1) % iter_size == 0 or step + 1 == len(batch_sizes):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        loss_sum += loss.detach().double() * len(indices)
        unreported += len(indices)
        if (step + 1) % report_every == 0 or step + 1 == len(batch_sizes):
            report(unreported, _finite(loss.item(), step))
            unreported = 0
    mean_loss = _finite(loss_sum.item() / sum(batch_sizes), len(batch_sizes) - 1)
    return EpochResult(mean_loss, sum(batch_sizes), time.perf_counter() - started)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss} at step {step + 1}; try a lower --base-lr or a higher --npc-temperature "
            "(the last checkpoint is from before this epoch)"
        )
    return loss
