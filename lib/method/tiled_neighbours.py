"""Equation 1 for all anchors, searching only the tiles that can hold an anchor's K nearest rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lib.distributed.world import Shard
from lib.method.tiled_entropy import BestTiles, Grid
from lib.search.exact import inner_products, merge_nearest

SPARE_TILES = 2
"""Tiles kept beyond K, so that a tie for place K seldom reaches the last one."""


def tiles_to_keep(k: int, tiles: int) -> int:
    """The number of best tiles of a row that `neighbours_from_best_tiles` needs."""
    return min(k + SPARE_TILES, tiles)


def neighbours_from_best_tiles(
    memory: Tensor, anchors: Tensor, k: int, best: BestTiles, grid: Grid, shard: Shard
) -> Tensor:
    """Equation 1: the K nearest bank rows of each anchor.

    The K largest tile maxima are K different rows, so the K-th of them is a bound: tiles with a lower maximum hold no
    neighbour. If the last tile kept ties with the bound, others may too, and all tiles are searched.

    Each process searches its own rows.

    Args:
        memory: this process's bank rows.
        anchors: (A,) int64, the same on every process.
        k: K, at most N - 1.
        best: from `entropies_and_best_tiles` with the same grid and `tiles_to_keep` tiles.
        grid, shard: as there.

    Returns:
        (A, K) int64, nearest first, ties by index; the same on every process.
    """
    neighbours = torch.empty(len(anchors), k, dtype=torch.int64, device=memory.device)
    for places, numbers, queries in anchor_panels(memory, anchors, k, grid, shard):
        row, tile, everywhere = _tiles_to_search(best, numbers, k, grid.tiles(shard.count))
        found = _search_own_tiles(memory, queries, numbers, k, (row, tile, everywhere), grid.tile_rows, shard)
        neighbours[places] = merge_nearest(*found, shard.world)[1]
    return neighbours


def _tiles_to_search(best: BestTiles, numbers: Tensor, k: int, tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a query and a tile, ordered by tile; and the queries that search all tiles."""
    if k >= tiles:
        none = numbers.new_empty(0)
        return none, none, torch.arange(len(numbers), device=numbers.device)
    value, tile = best.value[:, numbers], best.tile[:, numbers]  # (kept, R)
    bound = value[k - 1]
    # products of other shapes may round differently: the margin keeps a tile that ties with the bound
    lowest = bound - 1e-4 * bound.abs().clamp(min=1.0)
    listed = value >= lowest
    everywhere = listed[-1].clone() if len(value) < tiles else torch.zeros_like(listed[-1])
    listed &= ~everywhere
    tile, order = tile[listed].long().sort(stable=True)
    row = listed.nonzero()[:, 1][order]
    return row, tile, everywhere.nonzero().flatten()


def _search_own_tiles(
    memory: Tensor,
    queries: Tensor,
    numbers: Tensor,
    k: int,
    where: tuple[Tensor, Tensor, Tensor],
    tile_rows: int,
    shard: Shard,
) -> tuple[Tensor, Tensor]:
    """(R, K) similarities and row numbers of the nearest rows of this process, padded with -inf."""
    row, tile, everywhere = where
    best = memory.new_full((len(queries), k), float("-inf"))
    best_index = torch.full((len(queries), k), shard.count, dtype=torch.int64, device=memory.device)
    first_tile, tiles = shard.start // tile_rows, -(-shard.stop // tile_rows)
    bounds = torch.searchsorted(tile, torch.arange(first_tile, tiles + 1, device=tile.device)).tolist()
    at_once = 2 * tile_rows if k == 1 else max(1, tile_rows // 4)  # sorting takes more memory
    for number, (first, last) in enumerate(zip(bounds, bounds[1:]), first_tile):
        start = max(number * tile_rows, shard.start)
        part = memory[start - shard.start : min((number + 1) * tile_rows, shard.stop) - shard.start]
        for rows in torch.cat([row[first:last], everywhere]).split(at_once):
            if len(rows) == 0 or len(part) == 0:
                continue
            found = inner_products(queries[rows], part)  # (R, T)
            own = numbers[rows] - start
            inside = ((own >= 0) & (own < len(part))).nonzero().flatten()
            found[inside, own[inside]] = float("-inf")
            index = torch.arange(start, start + len(part), device=memory.device).expand(len(rows), -1)
            best[rows], best_index[rows] = _merge(best[rows], best_index[rows], found, index, k)
    return best, best_index


def _merge(best: Tensor, best_index: Tensor, found: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of both, highest first; ties by index.

    The tiles come in order, so that earlier results have lower indices, which a stable sort keeps first.
    """
    if k == 1:  # no sort: the first maximum of the tile, if it exceeds the best so far
        value = found.amax(dim=1, keepdim=True)
        first = (found == value).to(torch.uint8).argmax(dim=1, keepdim=True)
        better = value > best
        return torch.where(better, value, best), torch.where(better, index.gather(1, first), best_index)
    values, positions = torch.sort(torch.cat([best, found], dim=1), dim=1, descending=True, stable=True)
    return values[:, :k], torch.cat([best_index, index], dim=1).gather(1, positions[:, :k])


def anchor_panels(
    memory: Tensor, anchors: Tensor, k: int, grid: Grid, shard: Shard
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the bank rows of the anchors, panel by panel in the order of their row numbers, on every process.

    Args:
        memory: this process's bank rows.
        anchors: (A,) int64, no row twice, the same on every process.
        k: neighbours of each anchor; a chunk is small enough for them to need no more memory than a panel.
        grid: gives the rows of a panel.
        shard: which rows `memory` is.

    Yields:
        for each chunk its positions in `anchors` (R,), the anchors (R,), and their bank rows (R, D).
    """
    ascending, places = anchors.sort()
    at_once = max(1, grid.panel_rows * memory.shape[1] // (8 * k))
    for start, stop in grid.panels(shard.count):
        bounds = torch.tensor([start, stop], device=anchors.device)
        first, last = torch.searchsorted(ascending, bounds).tolist()
        if first == last:
            continue
        rows = shard.fetch(memory, start, stop)
        for chunk, numbers in zip(places[first:last].split(at_once), ascending[first:last].split(at_once)):
            yield chunk, numbers, rows[numbers - start]
