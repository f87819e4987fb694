"""Which images become anchors in a round, and who their neighbours are. No labels are used to decide anything."""

import math
from fractions import Fraction
from typing import Optional

import torch
from torch import Tensor

from lib.method.neighbourhoods import Neighbourhoods
from lib.method.tiled_discovery import default_tile_rows, entropies_and_maxima, neighbours_from_maxima, suits
from lib.nearest import nearest

FEW = 8
"""Up to so many neighbours a row has them in few tiles, and one pass beats a search of its own."""


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


def nearest_neighbours(memory: Tensor, anchors: Tensor, k: int, backend: str = "auto") -> Tensor:
    """Equation 1: the K bank rows of highest cosine to each anchor, among all N, the anchor itself left out.

    Returns:
        (A, K) int64, nearest first; ties go to the lower index.
    """
    _, indices = nearest(memory[anchors], memory, k, anchors, backend)
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
    backend: str = "auto",
    labels: Optional[Tensor] = None,
) -> Neighbourhoods:
    """Everything that is decided at the start of a round r >= 1, anew from the bank as it stands.

    Args:
        memory: (N, D) bank rows, on any device.
        round_number: r.
        select_rate, k, temperature: the options ANs_select_rate, ANs_size and npc_temperature.
        backend: `torch` takes entropies and neighbours from one pass, `faiss` searches in a pass of its own,
            `auto` the one pass for up to `FEW` neighbours. The answer is the same.
        labels: (N,) int64, used for the reported consistency and nothing else.

    Returns:
        the round's neighbourhoods, on the device of `memory`.
    """
    count = anchor_count(len(memory), select_rate, round_number)
    one_pass = backend == "torch" or (backend == "auto" and (k <= FEW or memory.is_cuda))
    if one_pass and suits(memory, temperature):
        tile_rows = default_tile_rows(memory)
        entropy, maxima = entropies_and_maxima(memory, temperature, tile_rows)
        anchors = select_anchors(entropy, count)
        neighbours = neighbours_from_maxima(memory, anchors, k, maxima, tile_rows)
    else:
        entropy = similarity_entropy(memory, temperature)
        anchors = select_anchors(entropy, count)
        neighbours = nearest_neighbours(memory, anchors, k, backend)
    share = None if labels is None else consistency(anchors, neighbours, labels.to(anchors.device))
    return Neighbourhoods.of(anchors, neighbours, entropy, share)
