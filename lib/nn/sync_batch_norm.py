"""Batch norm over the images of all processes, as if they had gone through one network together."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lib.compat import HAS_MIXED_BATCH_NORM, HAS_SYNC_BATCH_NORM_OF_NOTHING
from lib.distributed.world import World


def synchronise(network: nn.Module, world: World) -> nn.Module:
    """The same network with its batch norms taken over all processes: PyTorch's own on GPUs if it can, else ours.

    Parameters, buffers and the keys of the state dict stay. The network is changed in place, but the returned one
    must be used: it is another object if the network itself is a batch norm.
    """
    if world.size == 1:
        return network

    def synchronised(layer: nn.Module) -> nn.Module:
        theirs = world.device.type == "cuda" and HAS_SYNC_BATCH_NORM_OF_NOTHING
        new = _OfOneKind(1) if theirs else SynchronisedBatchNorm(1, world)
        new.plain_kind = type(layer)
        return _taking_over(layer, new)

    return _replaced(network, (nn.BatchNorm1d, nn.BatchNorm2d), synchronised)


def without_synchronisation(network: nn.Module) -> nn.Module:
    """The same network with plain batch norms, where no process needs another's images; see `synchronise`."""
    kinds = (SynchronisedBatchNorm, _OfOneKind)
    return _replaced(network, kinds, lambda layer: _taking_over(layer, layer.plain_kind(1)))


class _OfOneKind(nn.SyncBatchNorm):
    """PyTorch's, which sends statistics as float32, but for a process without images as what the images would be."""

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if len(rows) == 0 and rows.dtype != torch.float32:
            return super().forward(rows.float()).to(rows.dtype)
        return super().forward(rows)


class SynchronisedBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or nn.BatchNorm2d over the rows of all processes; any of them may have none, on any device."""

    def __init__(self, num_features: int, world: World):
        super().__init__(num_features)
        self._world = world

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...).

        Raises:
            ValueError: there is a single value for each channel in all processes together.
        """
        if rows.dtype == torch.bfloat16 and not HAS_MIXED_BATCH_NORM:
            return self(rows.float()).bfloat16()
        if not (self.training or self.running_mean is None):
            return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        count, mean, variance = _moments(rows.detach(), self._world)
        if self.training and self.running_mean is not None:
            self._remember(count, mean, variance)
        return _Normalise.apply(rows, self.weight, self.bias, mean, variance, count, self.eps, self._world)

    @torch.no_grad()
    def _remember(self, count: int, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.mul_(1 - momentum).add_(mean.to(self.running_mean.dtype), alpha=momentum)
        self.running_var.mul_(1 - momentum).add_(unbiased.to(self.running_var.dtype), alpha=momentum)


def _moments(rows: Tensor, world: World) -> tuple[int, Tensor, Tensor]:
    """How many values a channel has in all processes, and their mean and variance, (C,) float64.

    Each process takes them about its own mean, and these are joined: sums of squares would lose the digits of a
    variance that is small beside the mean.
    """
    channels = rows.shape[1]
    own = torch.zeros(1, 1 + 2 * channels, dtype=torch.float64, device=rows.device)
    if rows.numel() > 0:
        nothing = torch.zeros(channels, dtype=_wider(rows), device=rows.device)
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

    PyTorch's own kernels do the work on a batch norm whose statistics are given; what the gradient owes to the
    dependence of mean and variance on x is added to theirs: with u the upstream gradient, n values of a channel in all
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
        mean, variance = mean.to(_wider(rows)), variance.to(_wider(rows))
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
            gradient.addcmul_(upstream, _wide(scale, rows))
        # the parameters' gradients stay this process's: those of all are averaged with the rest of the network's
        of_weight = None if weight is None else own[1].to(weight.dtype)
        of_bias = None if weight is None else own[0].to(weight.dtype)
        return gradient, of_weight, of_bias, None, None, None, None, None


def _wider(rows: Tensor) -> torch.dtype:
    """What statistics of these rows are kept in."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _wide(channels: Tensor, rows: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to go with `rows`."""
    return channels.to(rows.dtype).view(1, -1, *[1] * (rows.dim() - 2))


def _taking_over(layer: nn.Module, new: nn.Module) -> nn.Module:
    """`new` with the settings, parameters and buffers of another batch norm."""
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
        setattr(new, name, getattr(layer, name))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(layer, name))
    return new


def _replaced(network: nn.Module, kinds: tuple, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    if isinstance(network, kinds):
        return make(network)
    for name, child in network.named_children():
        setattr(network, name, _replaced(child, kinds, make))
    return network
