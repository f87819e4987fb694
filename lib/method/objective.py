"""The loss: a non-parametric softmax over the bank, in which an anchor shares its probability with its neighbours.

This is the plain form, which holds all B x N probabilities. It is what the equations say; training runs the same
loss as `tiled_loss.tiled_and_loss`, in bounded memory, and the tests hold the two together.
"""

import torch
from torch import Tensor

ABSENT = -1
"""Fills the places of `members` that an image with a smaller set does not use."""


def log_probabilities(features: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """The logarithm of p_ij in equation 2: log p_ij = x_i . m_j / tau - log sum_n exp(x_i . m_n / tau).

    Args:
        features: (B, D) unit rows x_i; the gradient flows here only.
        memory: (N, D) bank rows m_j.
        temperature: tau > 0.

    Returns:
        (B, N) log-probabilities, float32.
    """
    logits = features @ memory.t() / temperature  # (B, N)
    return torch.log_softmax(logits, dim=1)


def neighbourhood_log_likelihood(log_p: Tensor, members: Tensor) -> Tensor:
    """The logarithm of equation 4, p(x_i) = sum_{j in N_k(i)} p_ij, of which equation 3 is the negative sum.

    The sum is taken as a log-sum-exp of log-probabilities: exp first would underflow to log 0.

    Args:
        log_p: (B, N) from `log_probabilities`.
        members: (B, S) int64, the rows of the bank in each image's set; `ABSENT` pads.
            A set holding the image alone gives the instance term, log p_ii.

    Returns:
        (B,) log-likelihoods.
    """
    absent = members == ABSENT
    in_set = log_p.gather(1, members.masked_fill(absent, 0))  # (B, S)
    return torch.logsumexp(in_set.masked_fill(absent, float("-inf")), dim=1)


def and_loss(features: Tensor, memory: Tensor, members: Tensor, temperature: float) -> Tensor:
    """Equation 7: the mean over the batch of -log p_ii (instances, 2) and -log sum_{j in N_k(i)} p_ij (anchors, 3).

    The paper writes a sum; the mean is the authors' code's.

    Args:
        features: (B, D), memory: (N, D), members: (B, S), temperature: as above.

    Returns:
        scalar loss.
    """
    log_p = log_probabilities(features, memory, temperature)
    return -neighbourhood_log_likelihood(log_p, members).mean()
