"""Which images become anchors in a round, and who their neighbours are. No labels are used to decide anything."""

import math
from fractions import Fraction
from typing import Callable, Optional

import torch
from torch import Tensor

from lib.method.neighbourhoods import Neighbourhoods

Search = Callable[[Tensor, Tensor, int, Optional[Tensor]], tuple[Tensor, Tensor]]
"""(queries (Q, D), database (N, D), K, own row of each query (Q,) or None) -> similarities, indices (Q, K)."""


def anchor_count(size: int, select_rate: float, round_number: int) -> int:
    """Equation 4: floor(N * S_r) anchors, with S_r = select_rate * r and never more than all N.

    The product is taken exactly: in floating point 100 * 0.29 is 28.999... and would lose an anchor.
    """
    share = min(Fraction(1), Fraction(repr(float(select_rate))) * round_number)
    return math.floor(size * share)


def similarity_entropy(memory: Tensor, temperature: float, tile_elements: int = 2**24) -> Tensor:
    """Equation 5: H_i = -sum_j p_ij log p_ij, where x_i is the bank row m_i and p_ii is included.

    log p_ij comes from a log-sum-exp, so that a p_ij too small for float32 counts as 0, not as 0 * log 0.

    Args:
        memory: (N, D) bank rows.
        temperature: tau.
        tile_elements: how many of the N x N logits may exist at a time.

    Returns:
        (N,) entropies in nats, float32, between 0 and log N.
    """
    entropy = memory.new_empty(memory.shape[0])
    for rows in torch.arange(memory.shape[0], device=memory.device).split(max(1, tile_elements // len(memory))):
        logits = memory[rows] @ memory.t() / temperature  # (Q, N)
        log_p = torch.log_softmax(logits, dim=1)
        entropy[rows] = -(log_p.exp() * log_p).sum(dim=1)
    return entropy


def select_anchors(entropy: Tensor, count: int) -> Tensor:
    """Equation 6: the `count` images of lowest entropy, (A,) int64, lowest first; ties go to the lower index."""
    return torch.sort(entropy, stable=True).indices[:count]


def nearest_neighbours(memory: Tensor, anchors: Tensor, k: int, search: Search) -> Tensor:
    """Equation 1: the K bank rows of highest cosine to each anchor, among all N, the anchor itself left out.

    Returns:
        (A, K) int64, nearest first; ties go to the lower index.
    """
    _, indices = search(memory[anchors], memory, k, anchors)
    return indices


def consistency(anchors: Tensor, neighbours: Tensor, labels: Tensor) -> Optional[float]:
    """Share of (anchor, neighbour) pairs with equal labels. For reports only; None where there is no anchor.

    Args:
        anchors: (A,), neighbours: (A, K), labels: (N,), all int64.
    """
    if len(anchors) == 0:
        return None
    return (labels[neighbours] == labels[anchors][:, None]).double().mean().item()


def discover(
    memory: Tensor,
    round_number: int,
    select_rate: float,
    k: int,
    temperature: float,
    search: Search,
    labels: Optional[Tensor] = None,
) -> Neighbourhoods:
    """Everything that is decided at the start of a round r >= 1, anew from the bank as it stands.

    Args:
        memory: (N, D) bank rows, on any device.
        round_number: r.
        select_rate, k, temperature: the options of those names (ANs_select_rate, ANs_size, npc_temperature).
        search: exact nearest-neighbour search.
        labels: (N,) int64, used for the reported consistency and nothing else.

    Returns:
        the round's neighbourhoods, on the device of `memory`.
    """
    entropy = similarity_entropy(memory, temperature)
    anchors = select_anchors(entropy, anchor_count(len(memory), select_rate, round_number))
    neighbours = nearest_neighbours(memory, anchors, k, search)
    share = None if labels is None else consistency(anchors, neighbours, labels.to(anchors.device))
    return Neighbourhoods.of(anchors, neighbours, entropy, share)
