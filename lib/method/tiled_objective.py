"""The loss of `objective.and_loss` without its B x N matrix: the same value and gradient, a tile of the bank at a time.

Written with log-sum-exps, equation 7 is the mean over the batch of

    L_i = lse_n(z_in) - lse_{j in N_k(i)}(z_ij),      z_ij = x_i . m_j / tau

and its gradient is the difference of two weighted means of bank rows, one over all rows, one over the set:

    dL_i / dx_i = (sum_n p_in m_n - sum_{j in N_k(i)} q_ij m_j) / tau,     q_ij = p_ij / sum_{j in N_k(i)} p_ij

Both sums over n are gathered in one pass over the bank, so the backward pass has nothing left to compute.
"""

from typing import Any

import torch
from torch import Tensor

from lib.method.objective import ABSENT

CPU_TILE_ELEMENTS = 2**18
"""Logits alive at a time on a CPU: 1 MiB, so that a tile stays in the cache between its passes."""

GPU_TILE_ELEMENTS = 2**25
"""Logits alive at a time on a GPU: 128 MiB, few launches and still bounded for any N."""


def tiled_and_loss(
    features: Tensor, memory: Tensor, members: Tensor, temperature: float, tile_elements: int = 0
) -> Tensor:
    """Equation 7, as `objective.and_loss`, in memory bounded by one tile.

    Args:
        features: (B, D) unit rows; the gradient flows here only.
        memory: (N, D) bank rows.
        members: (B, S) int64 sets, padded with `ABSENT`.
        temperature: tau.
        tile_elements: how many logits may exist at a time; 0 takes the default for the device.

    Returns:
        scalar loss, float32.
    """
    if tile_elements == 0:
        tile_elements = GPU_TILE_ELEMENTS if features.is_cuda else CPU_TILE_ELEMENTS
    return _TiledLoss.apply(features, memory, members, temperature, max(1, tile_elements // len(features)))


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, memory: Tensor, members: Tensor, temperature: float, tile_rows: int
    ) -> Tensor:
        scaled = features.detach() / temperature  # (B, D)
        wants_gradient = ctx.needs_input_grad[0]
        log_sum, mean_row = _over_all_rows(scaled, memory, tile_rows, wants_gradient)
        set_log_sum, set_mean_row = _over_the_set(scaled, memory, members)
        if wants_gradient:
            ctx.save_for_backward((mean_row - set_mean_row).div_(temperature * len(features)))
        return (log_sum - set_log_sum).mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None


def _over_all_rows(scaled: Tensor, memory: Tensor, tile_rows: int, with_mean: bool) -> tuple[Tensor, Tensor]:
    """The normaliser of equation 2, lse_n(z_in) (B,), and sum_n p_in m_n (B, D), in one pass.

    The running maximum keeps exp() in range.
    """
    batch = len(scaled)
    maximum = scaled.new_full((batch, 1), float("-inf"))
    total = scaled.new_zeros(batch, 1)
    mean_row = torch.zeros_like(scaled)
    for tile in memory.split(tile_rows):
        logits = scaled @ tile.t()  # (B, T)
        higher = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
        shrink = torch.exp(maximum - higher)  # what was summed so far, seen from the new maximum
        weights = logits.sub_(higher).exp_()
        total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
        if with_mean:
            mean_row.mul_(shrink).addmm_(weights, tile)
        maximum = higher
    return (maximum + total.log())[:, 0], mean_row.div_(total)


def _over_the_set(scaled: Tensor, memory: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of equation 3, as lse over the set (B,), and the mean row of the set under q (B, D)."""
    absent = members == ABSENT
    rows = memory[members.masked_fill(absent, 0)]  # (B, S, D), the one gather
    logits = torch.bmm(rows, scaled[:, :, None])[:, :, 0].masked_fill_(absent, float("-inf"))  # (B, S)
    log_sum = torch.logsumexp(logits, dim=1)
    q = torch.exp(logits - log_sum[:, None])
    return log_sum, torch.bmm(q[:, None, :], rows)[:, 0]
