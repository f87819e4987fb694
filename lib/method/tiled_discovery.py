"""Entropies and neighbours from one pass over the products of the bank with itself.

The matrix of similarities is symmetric, so each tile of it above the diagonal serves the rows and the columns it
spans: half of the N x N products give every entropy, and the largest similarity that each row has in each tile. Only
the tiles in which a row can have its nearest neighbours are then looked at again.
"""

import torch
from torch import Tensor

CPU_TILE_ROWS = 1024
"""Rows of a tile on a CPU: 4 MiB of similarities; of 256, 512 and 1024 the fastest at N = 20,000."""

GPU_TILE_ROWS = 4096
"""Rows of a tile on a GPU: 64 MiB of similarities, few launches."""

SAFE_SPREAD = 60.0
"""How far apart the rows' own logits may lie for one shift to keep every sum within float32."""


def default_tile_rows(memory: Tensor) -> int:
    """The side of a tile that suits the device of the bank."""
    return GPU_TILE_ROWS if memory.is_cuda else CPU_TILE_ROWS


def suits(memory: Tensor, temperature: float) -> bool:
    """Whether one shift fits all rows, as it does for rows of unit length."""
    own = memory.square().sum(dim=1) / temperature
    return bool(own.max() - own.min() <= SAFE_SPREAD)


def entropies_and_maxima(memory: Tensor, temperature: float, tile_rows: int) -> tuple[Tensor, Tensor]:
    """Equation 5 for every row, and where its neighbours can be.

    With y_ij = (m_i . m_j - s) / tau, s the largest squared length of a row, no y is above 0, and
    H_i = log sum_j exp(y_ij) - sum_j exp(y_ij) y_ij / sum_j exp(y_ij).

    Args:
        memory: (N, D) bank rows for which `suits` holds.
        temperature: tau.
        tile_rows: T, rows of a tile.

    Returns:
        entropies (N,) in nats, and maxima (tiles, N): the largest y of a row in each tile, itself left out.
    """
    parts = memory.split(tile_rows)
    scaled = [part / temperature for part in parts]
    shift = memory.square().sum(dim=1).max() / temperature
    total, weighted = torch.zeros_like(memory[:, 0]), torch.zeros_like(memory[:, 0])
    totals, weighteds = total.split(tile_rows), weighted.split(tile_rows)  # views: adding to them fills the whole
    maxima = memory.new_full((len(parts), len(memory)), float("-inf"))
    for a in range(len(parts)):
        for b in range(a, len(parts)):
            y = (scaled[a] @ parts[b].t()).sub_(shift)  # (T, T)
            if a == b:
                own = y.diagonal().clone()
                y.fill_diagonal_(float("-inf"))
                maxima[a].split(tile_rows)[a].copy_(y.amax(dim=1))
                y.diagonal().copy_(own)
            else:
                maxima[b].split(tile_rows)[a].copy_(y.amax(dim=1))
                maxima[a].split(tile_rows)[b].copy_(y.amax(dim=0))
            weights = y.exp()
            y.mul_(weights)
            totals[a].add_(weights.sum(dim=1))
            weighteds[a].add_(y.sum(dim=1))
            if a != b:
                totals[b].add_(weights.sum(dim=0))
                weighteds[b].add_(y.sum(dim=0))
    return (total.log() - weighted / total).clamp_(min=0.0), maxima


def neighbours_from_maxima(memory: Tensor, anchors: Tensor, k: int, maxima: Tensor, tile_rows: int) -> Tensor:
    """Equation 1 for the anchors, looking only into the tiles that can hold one of their K nearest rows.

    The K best tile maxima are K different rows, so the K-th of them is a bound: no tile below it matters.

    Args:
        memory: (N, D) bank rows.
        anchors: (A,) int64.
        k: K, at most N - 1.
        maxima: (tiles, N) from `entropies_and_maxima` with the same `tile_rows`.

    Returns:
        (A, K) int64, nearest first, ties by index.
    """
    tiles = len(maxima)
    of_anchors = maxima[:, anchors]  # (tiles, A)
    if k < tiles:
        bound = of_anchors.topk(k, dim=0).values[-1]
        # products of other shapes may round otherwise: a hair of room keeps a tile that ties with the bound
        candidates = of_anchors >= bound - 1e-4 * bound.abs().clamp(min=1.0)
    else:
        candidates = torch.ones_like(of_anchors, dtype=torch.bool)
    best = memory.new_full((len(anchors), k), float("-inf"))
    best_index = torch.full((len(anchors), k), len(memory), dtype=torch.int64, device=memory.device)
    for tile, part in enumerate(memory.split(tile_rows)):
        which = torch.nonzero(candidates[tile]).flatten()
        start = tile * tile_rows
        for rows in which.split(max(1, 2 * tile_rows)):
            found = memory[anchors[rows]] @ part.t()  # (R, T)
            own = anchors[rows] - start
            inside = (own >= 0) & (own < len(part))
            found[inside.nonzero().flatten(), own[inside]] = float("-inf")
            index = torch.arange(start, start + len(part), device=memory.device).expand(len(rows), -1)
            best[rows], best_index[rows] = _merge(best[rows], best_index[rows], found, index, k)
    return best_index


def _merge(best: Tensor, best_index: Tensor, found: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of both, in order; of equals the lower index, which a stable sort keeps first.

    What was found before has lower indices than what is found now: the tiles come in order.
    """
    if k == 1:  # the usual case needs no sort: the first largest of the tile, if it beats what was there
        value = found.amax(dim=1, keepdim=True)
        first = (found == value).to(torch.uint8).argmax(dim=1, keepdim=True)
        better = value > best
        return torch.where(better, value, best), torch.where(better, index.gather(1, first), best_index)
    values, positions = torch.sort(torch.cat([best, found], dim=1), dim=1, descending=True, stable=True)
    return values[:, :k], torch.cat([best_index, index], dim=1).gather(1, positions[:, :k])
