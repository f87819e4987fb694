"""Discovery at the start of a round: which images become anchors, and which images are their neighbours.

Labels are used for the reported consistency only.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Optional, Union

import torch
from torch import Tensor

from lib.distributed.world import Shard
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.tiled_discovery import (
    MEMORY_BUDGET,
    BestTiles,
    Grid,
    anchor_panels,
    entropies_and_best_tiles,
    neighbours_from_best_tiles,
    one_shift_fits,
    streamed_entropies,
    tiles_to_keep,
)
from lib.search.approximate import ApproximateSearch, recall
from lib.search.exact import CPU_TILE_ELEMENTS, GPU_TILE_ELEMENTS, ExactSearch

FEW = 8
"""The most neighbours for which one pass is faster than a separate search: they lie in few tiles."""

RECALL_SAMPLE = 1000
"""Anchors on which an approximate search is compared with an exact one."""


def anchor_count(size: int, select_rate: Union[float, Fraction], round_number: int) -> int:
    """Equation 6: floor(N * S) anchors, with S = select_rate * r and never more than all N.

    With R rounds and a select rate of 1 / R, S is the paper's r / R. The product is exact: in floating point
    100 * 0.29 is 28.999... and would lose an anchor.

    Args:
        size: N.
        select_rate: a fraction, or a float, which is read as its shortest decimal form.
        round_number: r.
    """
    rate = select_rate if isinstance(select_rate, Fraction) else Fraction(repr(float(select_rate)))
    return math.floor(size * min(Fraction(1), rate * round_number))


def similarity_entropy(
    memory: Tensor, temperature: float, tile_elements: int = 2**24, queries: Optional[Tensor] = None
) -> Tensor:
    """Equation 5: H_i = -sum_j p_ij log p_ij, where x_i is the bank row m_i and p_ii is included.

    A log-sum-exp gives log p_ij, so that a p_ij too small for float32 adds 0 and not 0 * log 0. This form holds whole
    rows of N logits; `discover` runs `tiled_discovery` over the whole bank.

    Args:
        memory: (N, D) bank rows.
        temperature: tau.
        tile_elements: how many logits may exist at a time.
        queries: (Q,) int64, rows; None: all N.

    Returns:
        (Q,) entropies in nats, float32, between 0 and log N.
    """
    queries = torch.arange(memory.shape[0], device=memory.device) if queries is None else queries
    entropy = memory.new_empty(len(queries))
    for places in torch.arange(len(queries), device=memory.device).split(max(1, tile_elements // len(memory))):
        logits = memory[queries[places]] @ memory.t() / temperature  # (T, N)
        log_p = torch.log_softmax(logits, dim=1)
        entropy[places] = -(log_p.exp() * log_p).sum(dim=1)
    return entropy


def select_anchors(entropy: Tensor, count: int) -> Tensor:
    """The `count` images of lowest entropy (5), (A,) int64, lowest first; ties by index."""
    return torch.sort(entropy, stable=True).indices[:count]


def nearest_neighbours(
    memory: Tensor,
    anchors: Tensor,
    k: int,
    backend: str = "auto",
    shard: Optional[Shard] = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Equation 1: the K bank rows of highest cosine to each anchor, among all N but the anchor itself.

    Returns:
        (A, K) int64, nearest first; ties by index.
    """
    shard = Shard.whole(memory) if shard is None else shard
    grid = Grid.within(memory_budget, memory)
    return _search(_exact_search(memory, backend, shard, memory_budget), memory, anchors, k, grid, shard)[1]


def _exact_search(memory: Tensor, backend: str, shard: Shard, memory_budget: int) -> ExactSearch:
    usual = GPU_TILE_ELEMENTS if memory.is_cuda else CPU_TILE_ELEMENTS
    fitting = max(1, memory_budget // 16)  # bytes: a similarity, as much again for the k largest, and a margin
    return ExactSearch(memory, backend, shard, min(usual, fitting))


def _search(
    search: Callable[..., tuple[Tensor, Tensor]], memory: Tensor, anchors: Tensor, k: int, grid: Grid, shard: Shard
) -> tuple[Tensor, Tensor]:
    """Similarities (A, K) and row numbers (A, K) that a search finds for the anchors."""
    similarities = memory.new_empty(len(anchors), k)
    indices = torch.empty(len(anchors), k, dtype=torch.int64, device=memory.device)
    for places, numbers, queries in anchor_panels(memory, anchors, k, grid, shard):
        similarities[places], indices[places] = search(queries, k, numbers)
    return similarities, indices


def consistency(anchors: Tensor, neighbours: Tensor, labels: Tensor) -> Optional[float]:
    """Share of (anchor, neighbour) pairs with equal labels among the pairs with two known labels; for reports only.

    Args:
        anchors: (A,), neighbours: (A, K), labels: (N,), all int64; a label below 0 is unknown.

    Returns:
        the share in [0, 1], or None without such pairs.
    """
    own, others = labels[anchors][:, None], labels[neighbours]
    known = (own >= 0) & (others >= 0)
    return (own == others)[known].double().mean().item() if known.any() else None


def discover(
    memory: Tensor,
    round_number: int,
    select_rate: Union[float, Fraction],
    k: int,
    temperature: float,
    backend: str = "auto",
    labels: Optional[Tensor] = None,
    shard: Optional[Shard] = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Neighbourhoods:
    """Choose the anchors of round r >= 1 and their neighbours from the present bank.

    Args:
        memory: (N, D) bank rows, on any device; with several processes those that `shard` names.
        round_number: r.
        select_rate, k, temperature: the options ANs_select_rate (in effect), ANs_size and npc_temperature.
        backend: `auto` and `torch` compute entropies and up to `FEW` neighbours in one pass, and search for more in a
            second one, as `faiss` does for any number. The results are equal. `ivf` searches a part of the rows and
            misses some neighbours; the result's `recall` estimates the share that it finds.
        labels: (N,) int64, of all images, for the reported consistency only.
        shard: which rows `memory` is; None: all of them.
        memory_budget: bytes beyond the bank and a few numbers per image; `faiss` and `ivf` copy the bank besides.

    Returns:
        the neighbourhoods of all N images, on the device of `memory`; the same on every process.

    Raises:
        ValueError: the memory budget is too small, or there are fewer than k other images.
    """
    shard = Shard.whole(memory) if shard is None else shard
    count = anchor_count(shard.count, select_rate, round_number)
    grid = Grid.within(memory_budget, memory)
    tiles = grid.tiles(shard.count)
    one_shift = one_shift_fits(memory, temperature, shard)
    few = k <= FEW or (memory.is_cuda and BestTiles.bytes(tiles_to_keep(k, tiles), shard.count) <= memory_budget // 4)
    one_pass = one_shift and (backend == "torch" or backend == "auto") and few
    recalled = None
    if one_shift:
        keep = tiles_to_keep(k, tiles) if one_pass else 1
        entropy, best = entropies_and_best_tiles(memory, temperature, keep, grid, shard)
    else:
        entropy = streamed_entropies(memory, temperature, grid, shard)
    anchors = select_anchors(entropy, count)
    if one_pass:
        neighbours = neighbours_from_best_tiles(memory, anchors, k, best, grid, shard)
    elif backend == "ivf":
        neighbours, recalled = _approximate_neighbours(memory, anchors, k, grid, shard, memory_budget)
    else:
        neighbours = nearest_neighbours(memory, anchors, k, backend, shard, memory_budget)
    share = None if labels is None else consistency(anchors, neighbours, labels.to(anchors.device))
    return Neighbourhoods.of(anchors, neighbours, entropy, share, recalled)


def _approximate_neighbours(
    memory: Tensor, anchors: Tensor, k: int, grid: Grid, shard: Shard, memory_budget: int
) -> tuple[Tensor, Optional[float]]:
    """Neighbours (A, K) by an inverted file, and its recall on evenly spaced anchors; None without anchors."""
    found, neighbours = _search(ApproximateSearch(memory, shard), memory, anchors, k, grid, shard)
    if len(anchors) == 0:
        return neighbours, None
    sample = torch.linspace(0, len(anchors) - 1, min(len(anchors), RECALL_SAMPLE)).long().to(anchors.device)
    exact = _exact_search(memory, "auto", shard, memory_budget)
    true, _ = _search(exact, memory, anchors[sample], 1, grid, shard)
    return neighbours, recall(found[sample], true)
