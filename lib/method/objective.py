"""The objective: a softmax over the memory bank, in which an anchor adds its neighbours' probabilities to its own.

For features x_i, bank rows m_j and logits z_ij = x_i . m_j / tau:

    p_ij   = exp(z_ij) / sum_n exp(z_in)       probability that image i is taken for image j               (2)
    p(x_i) = sum_{j in N_k(i)} p_ij            probability of an anchor's neighbourhood                    (4)
    L_i    = -log p(x_i)                       loss of an anchor (3), and of an instance with the set {i}  (2)
    L      = mean_i L_i                        loss of a batch; the paper sums, the mean is the authors'   (7)

Written with log-sum-exps, which underflow nowhere,

    L_i = lse_n(z_in) - lse_{j in N_k(i)}(z_ij)

and its gradient is the difference of two weighted means of bank rows, one over all rows, one over the set (9 to 11):

    dL_i / dx_i = (sum_n p_in m_n - sum_{j in N_k(i)} q_ij m_j) / tau,     q_ij = p_ij / p(x_i)

One pass over the bank, tile by tile, gives both sums over n. So no B x N matrix exists, and the forward pass computes
the gradient too.

With P processes each passes over its own rows of the bank, for the images of all. Two exchanges join the results: a
maximum of the running maxima and of the logits within the sets, then a sum of everything else.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from lib.distributed.world import Shard
from lib.method.memory_bank import GlobalBatch

ABSENT = -1
"""Pads the rows of `members` of images with smaller sets."""

CPU_TILE_ELEMENTS = 2**18
"""Logits of a tile on a CPU: 1 MiB, so that a tile stays in the cache between its passes."""

GPU_TILE_ELEMENTS = 2**25
"""Logits of a tile on a GPU: 128 MiB, few launches and still bounded for any N."""


def and_loss(
    features: Tensor,
    memory: Tensor,
    members: Tensor,
    temperature: float,
    tile_elements: int = 0,
    shard: Optional[Shard] = None,
    batch: Optional[GlobalBatch] = None,
) -> Tensor:
    """Equation 7: the mean over the batch of -log p_ii (instances, 2) and -log sum_{j in N_k(i)} p_ij (anchors, 3).

    With P processes the value is the mean over the images of all, the same on each. The gradient is P times that of
    this mean: DistributedDataParallel averages over the processes, and the average is then the gradient of the mean.

    Args:
        features: (B, D) unit rows x_i, the images of this process; the gradient flows here only. With several
            processes B may differ among them, and be 0.
        memory: (N, D) bank rows m_j; with several processes those that `shard` names.
        members: (B, S) int64, the set N_k(i) of each image as row numbers among all N, padded with `ABSENT`. A set of
            the image alone gives the instance term.
        temperature: tau > 0.
        tile_elements: how many logits may exist at a time; 0 takes the default for the device.
        shard: which rows `memory` is; None: all of them.
        batch: what `GlobalBatch.gather` made of `features` and `members`, if it exists already.

    Returns:
        scalar loss, float32.
    """
    shard = Shard.whole(memory) if shard is None else shard
    batch = GlobalBatch.gather(features, members, shard.world) if batch is None else batch
    if tile_elements == 0:
        tile_elements = GPU_TILE_ELEMENTS if features.is_cuda else CPU_TILE_ELEMENTS
    tile_rows = max(1, tile_elements // len(batch.features))
    return _MeanLoss.apply(features, memory, batch, shard, temperature, tile_rows)


class _MeanLoss(torch.autograd.Function):
    """Equation 7 with the gradient that `neighbourhood_log_likelihood` computes beside it."""

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
        scaled = batch.features / temperature  # (B, D)
        log_p, gradient = neighbourhood_log_likelihood(
            scaled, memory, batch.members, shard, tile_rows, with_gradient=ctx.needs_input_grad[0]
        )
        if gradient is not None:
            gradient = gradient.div_(temperature * len(scaled) / shard.world.size)
            ctx.save_for_backward(gradient[batch.own])
        return -log_p.mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None, None


def neighbourhood_log_likelihood(
    scaled: Tensor, memory: Tensor, members: Tensor, shard: Shard, tile_rows: int, with_gradient: bool
) -> tuple[Tensor, Optional[Tensor]]:
    """The logarithm of equation 4, p(x_i) = sum_{j in N_k(i)} p_ij, whose negative is an anchor's loss (3).

    Args:
        scaled: (B, D) x_i / tau of all processes' images.
        memory: the bank rows of this process.
        members: (B, S) int64 sets of all processes' images, padded with `ABSENT`.
        shard: which rows `memory` is.
        tile_rows: bank rows of a tile.
        with_gradient: whether the gradient is wanted.

    Returns:
        log p(x_i) (B,) and the gradient (B, D) of -log p(x_i) by x_i / tau, or None; the same on every process.
    """
    world = shard.world
    # another process may need the sum over this process's rows for its gradient
    maximum, total, row_sum = sum_over_bank(scaled, memory, tile_rows, with_gradient or world.size > 1)
    rows, logits, outside = logits_within_set(scaled, memory, members, shard)
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
    gradient = row_sum.div_(total).sub_(set_mean_row) if with_gradient else None
    return set_log_sum - log_sum, gradient


def sum_over_bank(scaled: Tensor, memory: Tensor, tile_rows: int, with_row_sum: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The denominator sum_n exp(z_in) of equation 2, and the weighted sum of bank rows for the gradient.

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
        shrink = torch.exp(maximum - higher)  # rescales the sums so far to the new maximum
        weights = logits.sub_(higher).exp_()
        total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
        if with_row_sum:
            row_sum.mul_(shrink).addmm_(weights, tile)
        maximum = higher
        del logits, weights  # frees this tile before the next one is computed
    return maximum, total, row_sum


def logits_within_set(scaled: Tensor, memory: Tensor, members: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """The logits z_ij of equation 2 for the members j of each image's set.

    Returns:
        the members' bank rows (B, S, D), their logits (B, S), and which of them this process lacks (B, S), either
        because the set is smaller or because another process holds the row; their logits are -inf.
    """
    if shard.world.size == 1:
        outside, places = members == ABSENT, members
    else:
        outside, places = shard.outside(members), members - shard.start
    if len(memory) == 0:
        memory = memory.new_zeros(1, memory.shape[1])
    rows = memory[places.masked_fill(outside, 0)]  # the only gather
    logits = torch.bmm(rows, scaled[:, :, None])[:, :, 0].masked_fill_(outside, float("-inf"))
    return rows, logits, outside
