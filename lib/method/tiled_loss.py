"""The loss of `objective.and_loss` without its B x N matrix: the same value and gradient, a tile of the bank at a time.

Written with log-sum-exps, equation 7 is the mean over the batch of

    L_i = lse_n(z_in) - lse_{j in N_k(i)}(z_ij),      z_ij = x_i . m_j / tau

and its gradient is the difference of two weighted means of bank rows, one over all rows, one over the set:

    dL_i / dx_i = (sum_n p_in m_n - sum_{j in N_k(i)} q_ij m_j) / tau,     q_ij = p_ij / sum_{j in N_k(i)} p_ij

Both sums over n are gathered in one pass over the bank, so the backward pass has nothing left to compute.

With P processes each passes over its own rows of the bank, for the images of all. Two exchanges make it whole: the
largest of the running maxima and, along with them, the logits within the sets; then one sum of everything else.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from lib.distributed.shard import Shard
from lib.method.global_batch import GlobalBatch
from lib.method.objective import ABSENT

CPU_TILE_ELEMENTS = 2**18
"""Logits alive at a time on a CPU: 1 MiB, so that a tile stays in the cache between its passes."""

GPU_TILE_ELEMENTS = 2**25
"""Logits alive at a time on a GPU: 128 MiB, few launches and still bounded for any N."""


def tiled_and_loss(
    features: Tensor,
    memory: Tensor,
    members: Tensor,
    temperature: float,
    tile_elements: int = 0,
    shard: Optional[Shard] = None,
    batch: Optional[GlobalBatch] = None,
) -> Tensor:
    """Equation 7, as `objective.and_loss`, in memory bounded by one tile.

    With P processes the value is the mean over the images of all, the same on each. The gradient is P times that of
    this mean: DistributedDataParallel averages over the processes, and the average is then the gradient of the mean.

    Args:
        features: (B, D) unit rows, the images of this process; the gradient flows here only. With several processes
            B may differ among them, and be 0.
        memory: (N, D) bank rows; with several processes those that `shard` names.
        members: (B, S) int64 sets, row numbers among all N, padded with `ABSENT`.
        temperature: tau.
        tile_elements: how many logits may exist at a time; 0 takes the default for the device.
        shard: which rows `memory` is; None: all of them.
        batch: what `GlobalBatch.gather` made of `features` and `members`, if it is there already.

    Returns:
        scalar loss, float32.
    """
    shard = Shard.whole(memory) if shard is None else shard
    batch = GlobalBatch.gather(features, members, shard.world) if batch is None else batch
    if tile_elements == 0:
        tile_elements = GPU_TILE_ELEMENTS if features.is_cuda else CPU_TILE_ELEMENTS
    tile_rows = max(1, tile_elements // len(batch.features))
    return _TiledLoss.apply(features, memory, batch, shard, temperature, tile_rows)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        memory: Tensor,
        batch: GlobalBatch,
        shard: Shard,
        temperature: float,
        tile_rows: int,
    ) -> Tensor:
        world = shard.world
        scaled = batch.features / temperature  # (B, D)
        # another process may need what this one's rows of the bank give to its gradient
        with_mean = ctx.needs_input_grad[0] or world.size > 1
        maximum, total, row_sum = _over_all_rows(scaled, memory, tile_rows, with_mean)
        rows, logits, outside = _within_the_set(scaled, memory, batch.members, shard)
        if world.size > 1:
            largest = world.all_reduce_max(torch.cat([maximum, logits], dim=1))
            shrink = torch.exp(maximum - largest[:, :1])
            total, row_sum = total * shrink, row_sum * shrink
            maximum, logits = largest[:, :1], largest[:, 1:]
        set_log_sum = torch.logsumexp(logits, dim=1)
        q = torch.exp(logits - set_log_sum[:, None])  # (B, S)
        if world.size > 1:
            q.masked_fill_(outside, 0.0)
        set_mean_row = torch.bmm(q[:, None, :], rows)[:, 0]  # (B, D)
        if world.size > 1:
            summed = world.all_reduce_sum(torch.cat([total, row_sum, set_mean_row], dim=1))
            total, row_sum, set_mean_row = summed.split([1, row_sum.shape[1], row_sum.shape[1]], dim=1)
        log_sum = (maximum + total.log())[:, 0]
        if ctx.needs_input_grad[0]:
            gradient = row_sum.div_(total).sub_(set_mean_row)
            gradient = gradient.div_(temperature * len(scaled) / world.size)
            ctx.save_for_backward(gradient[batch.own])
        return (log_sum - set_log_sum).mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None, None


def _over_all_rows(scaled: Tensor, memory: Tensor, tile_rows: int, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the rows that are here.

    Returns:
        the largest logit c_i (B, 1), sum_n exp(z_in - c_i) (B, 1) and sum_n exp(z_in - c_i) m_n (B, D). The maximum
        is a running one, which keeps exp() in range; without rows it is -inf and the sums are 0.
    """
    batch = len(scaled)
    maximum = scaled.new_full((batch, 1), float("-inf"))
    total = scaled.new_zeros(batch, 1)
    row_sum = torch.zeros_like(scaled)
    for tile in memory.split(tile_rows) if len(memory) > 0 else ():
        logits = scaled @ tile.t()  # (B, T)
        higher = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
        shrink = torch.exp(maximum - higher)  # what was summed so far, seen from the new maximum
        weights = logits.sub_(higher).exp_()
        total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
        if with_mean:
            row_sum.mul_(shrink).addmm_(weights, tile)
        maximum = higher
        del logits, weights  # or this tile would live until the next one is there
    return maximum, total, row_sum


def _within_the_set(scaled: Tensor, memory: Tensor, members: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of each image's set (B, S, D) and their logits (B, S), and which of them are not here (B, S).

    Those that are not here, be it that the set is smaller or that another process has them, have the logit -inf.
    """
    if shard.world.size == 1:
        outside, places = members == ABSENT, members
    else:
        outside, places = shard.outside(members), members - shard.start
    if len(memory) == 0:
        memory = memory.new_zeros(1, memory.shape[1])
    rows = memory[places.masked_fill(outside, 0)]  # the one gather
    logits = torch.bmm(rows, scaled[:, :, None])[:, :, 0].masked_fill_(outside, float("-inf"))
    return rows, logits, outside
