"""Batch norm over the images of all processes, for GPUs and CPUs."""

from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lib.compat import HAS_EMPTY_SYNC_BATCH_NORM, HAS_MIXED_BATCH_NORM
from lib.distributed.world import World


def synchronise(network: nn.Module, world: World) -> nn.Module:
    """Replace a network's batch norms by synchronised ones: nn.SyncBatchNorm on GPUs, else `SynchronisedBatchNorm`.

    Parameters, buffers and state dict keys stay. The network is changed in place; use the returned one, which is
    another object if the network itself is a batch norm.
    """
    if world.size == 1:
        return network

    def synchronised(layer: nn.Module) -> nn.Module:
        on_gpu = world.device.type == "cuda" and HAS_EMPTY_SYNC_BATCH_NORM
        new: Union[_SyncBatchNorm, SynchronisedBatchNorm]
        new = _SyncBatchNorm(1) if on_gpu else SynchronisedBatchNorm(1, world)
        new.plain_kind = type(layer)
        return _with_state_of(layer, new)

    return _replaced(network, (nn.BatchNorm1d, nn.BatchNorm2d), synchronised)


def without_synchronisation(network: nn.Module) -> nn.Module:
    """Replace synchronised batch norms by plain ones; the inverse of `synchronise`."""
    kinds = (SynchronisedBatchNorm, _SyncBatchNorm)
    return _replaced(network, kinds, lambda layer: _with_state_of(layer, layer.plain_kind(1)))


class _SyncBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm in which a process without images also sends float32 statistics, as the others do."""

    plain_kind: type[nn.Module]

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if len(rows) == 0 and rows.dtype != torch.float32:
            return super().forward(rows.float()).to(rows.dtype)
        return super().forward(rows)


class SynchronisedBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or nn.BatchNorm2d over the rows of all processes, on any device; a process may have no rows."""

    plain_kind: type[nn.Module]

    def __init__(self, num_features: int, world: World):
        super().__init__(num_features)
        self._world = world

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...).

        Raises:
            ValueError: all processes together have a single value per channel.
        """
        if rows.dtype == torch.bfloat16 and not HAS_MIXED_BATCH_NORM:
            return self(rows.float()).bfloat16()
        if not (self.training or self.running_mean is None):
            return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        count, mean, variance = _moments(rows.detach(), self._world)
        if self.training and self.running_mean is not None:
            self._update_running_statistics(count, mean, variance)
        return _Normalise.apply(rows, self.weight, self.bias, mean, variance, count, self.eps, self._world)

    @torch.no_grad()
    def _update_running_statistics(self, count: int, mean: Tensor, variance: Tensor) -> None:
        batches, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        assert batches is not None  # PyTorch keeps all three or none
        assert running_mean is not None
        assert running_var is not None
        batches.add_(1)
        momentum = 1.0 / batches.item() if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)


def _moments(rows: Tensor, world: World) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of each channel over all processes, (C,) float64.

    Each process computes its variance about its own mean before the results are combined: sums of squares would lose
    the digits of a variance that is small beside the mean.
    """
    channels = rows.shape[1]
    own = torch.zeros(1, 1 + 2 * channels, dtype=torch.float64, device=rows.device)
    if rows.numel() > 0:
        nothing = torch.zeros(channels, dtype=_statistics_dtype(rows), device=rows.device)
        mean, variance = torch.batch_norm_update_stats(rows, nothing, nothing.clone(), 0.0)
        own[0, 0] = rows.numel() // channels
        own[0, 1 : 1 + channels], own[0, 1 + channels :] = mean, variance
    every = world.gather_rows(own, [1] * world.size)  # (P, 1 + 2 C)
    counts, means, variances = every[:, :1], every[:, 1 : 1 + channels], every[:, 1 + channels :]
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / count
    if count <= 1:
        raise ValueError(f"batch norm cannot learn from {int(count)} value(s) per channel")
    return int(count), mean, variance


class _Normalise(torch.autograd.Function):
    """y = w (x - mean) / sqrt(variance + eps) + b, where mean and variance depend on the x of all processes.

    PyTorch's kernels compute batch norm with given statistics. The part of the gradient that flows through mean and
    variance is added: with u the upstream gradient, n values of a channel in all
    processes and z = (x - mean) / sqrt(variance + eps), it is -w / sqrt(variance + eps) / n * (sum u + z sum u z).
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        mean: Tensor,
        variance: Tensor,
        count: int,
        eps: float,
        world: World,
    ) -> Tensor:
        mean, variance = mean.to(_statistics_dtype(rows)), variance.to(_statistics_dtype(rows))
        ctx.save_for_backward(rows, weight, mean, variance)
        ctx.count, ctx.eps, ctx.world = count, eps, world
        if rows.numel() == 0:
            return rows.clone()
        return F.batch_norm(rows, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        rows, weight, mean, variance = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        own = mean.new_zeros(2, len(mean))  # sum of u, and of u z
        if rows.numel() > 0:
            _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                upstream, rows, weight, mean, variance, mean, inverse, False, ctx.eps, [False, True, True]
            )
            own[0], own[1] = of_bias, of_weight
        through_mean, through_variance = ctx.world.all_reduce_sum(own.clone()) / ctx.count
        gradient = torch.empty_like(rows)
        if rows.numel() > 0:
            scale = inverse if weight is None else inverse * weight
            # -scale (z sum u z + sum u) / n is a batch norm itself
            gradient = F.batch_norm(
                rows, mean, variance, -scale * through_variance, -scale * through_mean, False, 0.0, ctx.eps
            )
            gradient.addcmul_(upstream, _per_channel(scale, rows))
        # gradients of weight and bias are this process's; DistributedDataParallel averages them
        of_weight = None if weight is None else own[1].to(weight.dtype)
        of_bias = None if weight is None else own[0].to(weight.dtype)
        return gradient, of_weight, of_bias, None, None, None, None, None


def _statistics_dtype(rows: Tensor) -> torch.dtype:
    """The dtype of statistics."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _per_channel(channels: Tensor, rows: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), broadcastable to `rows`."""
    return channels.to(rows.dtype).view(1, -1, *[1] * (rows.dim() - 2))


def _with_state_of(layer: nn.Module, new: nn.Module) -> nn.Module:
    """`new` with the settings, parameters and buffers of the batch norm `layer`."""
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
        setattr(new, name, getattr(layer, name))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(layer, name))
    return new


def _replaced(network: nn.Module, kinds: tuple, make: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(network, kinds):
        return make(network)
    for name, child in network.named_children():
        setattr(network, name, _replaced(child, kinds, make))
    return network
