"""Equations 5 and 1 for a whole bank, in tiles of its N x N similarities.

The similarities are symmetric, so each tile above the diagonal serves its rows and its columns: half of the products
give every entropy (5), and the maximum of each row in each tile. The tiles with an anchor's largest maxima hold its
neighbours (1), and only these are searched.

The tiles are assigned to the processes round-robin. Every process holds two panels of the bank at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.distributed.world import Shard, World
from lib.search.exact import inner_products, merge_nearest

CPU_TILE_ROWS = 1024
"""Rows of a tile on a CPU: 4 MiB of similarities; of 256, 512 and 1024 the fastest at N = 20,000."""

GPU_TILE_ROWS = 4096
"""Rows of a tile on a GPU: 64 MiB of similarities, few launches."""

MEMORY_BUDGET = 2**30
"""Bytes that discovery may use beyond the bank and a few numbers per image."""

GROUP = 8
"""Tiles whose maxima are sorted together: sorting those of each tile would cost more than the products."""

_TILE_BYTES = 16
"""Bytes per similarity of a tile: itself, its exponential, and the sorting for k neighbours."""

CHUNK_ELEMENTS = 2**18
"""Maxima that are sorted at a time."""

SAFE_SPREAD = 60.0
"""The largest range of squared lengths / tau for which one shift keeps every sum within float32."""


SPARE_TILES = 2
"""Tiles kept beyond K, so that a tie for place K seldom includes the last one."""


@dataclass(frozen=True)
class Grid:
    """Divides the N x N similarities into tiles of T x T, and rows and columns into panels held at a time.

    Tiles, and the sums over them, do not depend on the number of processes.

    Attributes:
        tile_rows: T.
        panel_rows: rows of a panel, a multiple of T.
    """

    tile_rows: int
    panel_rows: int

    @classmethod
    def within(cls, memory_budget: int, memory: Tensor) -> "Grid":
        """The grid with the largest panels, and tiles of the usual size if they fit, for bank rows like `memory`.

        Raises:
            ValueError: the budget, in bytes, is too small for a tile of a single row.
        """
        row_bytes = _panel_row_bytes(memory)
        tile_rows = GPU_TILE_ROWS if memory.is_cuda else CPU_TILE_ROWS
        while tile_rows > 1 and (_TILE_BYTES * tile_rows + row_bytes) * tile_rows > memory_budget / 2:
            tile_rows //= 2
        tiles = int((memory_budget - _TILE_BYTES * tile_rows**2) / (row_bytes * tile_rows))
        if tiles < 1:
            raise ValueError(f"a memory budget of {memory_budget} bytes is too small for rows of {memory.shape[1]}")
        return cls(tile_rows, tiles * tile_rows)

    def bytes(self, memory: Tensor) -> int:
        """Bytes of two panels with the maxima of their tiles, and of a tile."""
        return _panel_row_bytes(memory) * self.panel_rows + _TILE_BYTES * self.tile_rows**2

    def tiles(self, count: int) -> int:
        """The number of tiles that span `count` rows."""
        return -(-count // self.tile_rows)

    def panels(self, count: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """(first row, row after the last) of each panel of `count` rows, from row `start` on."""
        for first in range(start, count, self.panel_rows):
            yield first, min(first + self.panel_rows, count)


def _panel_row_bytes(memory: Tensor) -> int:
    return 2 * memory.element_size() * memory.shape[1] + 4 * (GROUP + 1)


class BestTiles:
    """The `keep` largest tile maxima of each of N rows, and their tiles.

    Attributes:
        value: (keep, N) float32, largest first, padded with -inf.
        tile: (keep, N) int32.
    """

    def __init__(self, keep: int, like: Tensor, count: int):
        self.value = like.new_full((keep, count), float("-inf"))
        self.tile = torch.full((keep, count), -1, dtype=torch.int32, device=like.device)

    @staticmethod
    def bytes(keep: int, count: int) -> int:
        """Bytes for `keep` tiles of `count` rows."""
        return 8 * keep * count

    def add(self, start: int, maxima: Tensor, first_tile: int) -> None:
        """Add the maxima of more tiles; -inf stands for none.

        Args:
            start: the first row.
            maxima: (M, R), of R rows in the M tiles from `first_tile` on; no tile twice for a row.
        """
        tiles = torch.arange(first_tile, first_tile + len(maxima), dtype=torch.int32, device=maxima.device)
        for offset in range(0, maxima.shape[1], max(1, CHUNK_ELEMENTS // len(maxima))):
            part = maxima[:, offset : offset + max(1, CHUNK_ELEMENTS // len(maxima))]
            rows = slice(start + offset, start + offset + part.shape[1])
            self._take(rows, part, tiles[:, None].expand(-1, part.shape[1]))

    def merge(self, world: World) -> None:
        """Replace the maxima by the best of all processes, the same on each."""
        keep, count = self.value.shape
        if world.size == 1:
            return
        step = max(1, CHUNK_ELEMENTS // (keep * world.size))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            values = world.gather_rows(self.value[:, rows], [keep] * world.size)
            tiles = world.gather_rows(self.tile[:, rows], [keep] * world.size)
            self.value[:, rows] = float("-inf")  # this process's own are among `values`
            self._take(rows, values, tiles)

    def _take(self, rows: slice, values: Tensor, tiles: Tensor) -> None:
        values = torch.cat([self.value[:, rows], values])
        tiles = torch.cat([self.tile[:, rows], tiles])
        self.value[:, rows], which = values.topk(len(self.value), dim=0)
        self.tile[:, rows] = tiles.gather(0, which)


def squared_lengths(memory: Tensor) -> Tensor:
    """(N,) squared lengths of the rows, without a temporary of the bank's size."""
    return memory.norm(dim=1).square_()


def one_shift_fits(memory: Tensor, temperature: float, shard: Shard) -> bool:
    """Whether one shift keeps the exponentials of all rows within float32, as for rows of unit length."""
    own = squared_lengths(memory) / temperature
    extremes = memory.new_full((2,), float("-inf"))
    if len(own) > 0:
        extremes = torch.stack([own.max(), -own.min()])
    largest, smallest = shard.world.all_reduce_max(extremes).tolist()
    return largest + smallest <= SAFE_SPREAD


def entropies_and_best_tiles(
    memory: Tensor, temperature: float, keep: int, grid: Grid, shard: Shard
) -> tuple[Tensor, BestTiles]:
    """Equation 5 for every row, and the tiles that can hold its nearest neighbours.

    With y_ij = (m_i . m_j - s) / tau, where s is the largest squared length of a row, no y is above 0, and
    H_i = log sum_j exp(y_ij) - sum_j exp(y_ij) y_ij / sum_j exp(y_ij).

    Sums within a tile are float32, sums of tiles float64: their order, which depends on the number of processes, does
    not change an entropy.

    Args:
        memory: this process's bank rows, for which `one_shift_fits`.
        temperature: tau.
        keep: tiles to return for each row, at most as many as there are.
        grid: tiles and panels.
        shard: which rows `memory` is.

    Returns:
        entropies (N,) in nats, float32, and the best tiles by y without the row itself; the same on every process.
    """
    world = shard.world
    longest = memory.new_zeros(1)
    if len(memory) > 0:
        longest = squared_lengths(memory).max().view(1)
    shift = world.all_reduce_max(longest)[0] / temperature
    sums = torch.zeros(2, shard.count, dtype=torch.float64, device=memory.device)
    best = BestTiles(keep, memory, shard.count)
    turn = _RoundRobin(world.rank, world.size)
    for start, stop in grid.panels(shard.count):
        rows = shard.fetch(memory, start, stop)
        for other_start, other_stop in grid.panels(shard.count, start):
            columns = rows if other_start == start else shard.fetch(memory, other_start, other_stop)
            _panel_pair(rows, start, columns, other_start, temperature, shift, grid.tile_rows, turn, sums, best)
    total, weighted = world.all_reduce_sum(sums)
    best.merge(world)
    entropy = (total.log() - weighted / total).clamp_(min=0.0).to(memory.dtype)
    return world.broadcast(entropy), best  # the last bits may differ between processes, and with them the order


class _RoundRobin:
    """Assigns tiles to the processes round-robin."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size, self._number = rank, size, 0

    def is_own(self) -> bool:
        """Whether this process computes the next tile."""
        self._number += 1
        return (self._number - 1) % self._size == self._rank


def _panel_pair(
    rows: Tensor,
    start: int,
    columns: Tensor,
    other_start: int,
    temperature: float,
    shift: Tensor,
    tile_rows: int,
    turn: _RoundRobin,
    sums: Tensor,
    best: BestTiles,
) -> None:
    """Add this process's tiles of a panel of rows and a panel of columns to `sums` and `best`."""
    parts = columns.split(tile_rows)
    first_a, first_b = start // tile_rows, other_start // tile_rows
    of_columns = columns.new_empty(GROUP, len(columns))  # maxima of the columns in the last tiles of rows
    group_start = first_a
    for a, part_a in enumerate(rows.split(tile_rows), first_a):
        row_span = slice(a * tile_rows, a * tile_rows + len(part_a))
        scaled = part_a / temperature
        of_rows = columns.new_full((len(parts), len(part_a)), float("-inf"))
        of_columns[a - group_start].fill_(float("-inf"))
        for b, part_b in enumerate(parts, first_b):
            if b < a or not turn.is_own():
                continue
            y = (scaled @ part_b.t()).sub_(shift)  # (T, T)
            if a == b:
                own = y.diagonal().clone()
                y.fill_diagonal_(float("-inf"))
                of_rows[b - first_b] = y.amax(dim=1)
                y.diagonal().copy_(own)
            else:
                offset = (b - first_b) * tile_rows
                of_rows[b - first_b] = y.amax(dim=1)
                of_columns[a - group_start, offset : offset + len(part_b)] = y.amax(dim=0)
            weights = y.exp()
            y.mul_(weights)
            sums[0, row_span] += weights.sum(dim=1)
            sums[1, row_span] += y.sum(dim=1)
            if a != b:
                column_span = slice(b * tile_rows, b * tile_rows + len(part_b))
                sums[0, column_span] += weights.sum(dim=0)
                sums[1, column_span] += y.sum(dim=0)
        best.add(row_span.start, of_rows, first_b)
        if a + 1 - group_start == GROUP or row_span.stop == start + len(rows):
            best.add(other_start, of_columns[: a + 1 - group_start], group_start)
            group_start = a + 1


def streamed_entropies(memory: Tensor, temperature: float, grid: Grid, shard: Shard) -> Tensor:
    """Equation 5 for rows of any length, where no single shift fits, such as those of a bank from another program.

    A row's probabilities are a mixture of those within each tile, with the tiles' sums as weights w. By the chain rule
    H = sum w H_tile - sum w log w, added up tile by tile. The processes take the rows of a tile in turn, so that one
    process sums all of a row in a fixed order.

    Args:
        memory: this process's bank rows.
        temperature: tau.
        grid: tiles and panels.
        shard: which rows `memory` is.

    Returns:
        (N,) entropies in nats, float32, the same on every process.
    """
    world, tile_rows = shard.world, grid.tile_rows
    entropy = torch.zeros(shard.count, dtype=torch.float64, device=memory.device)
    log_sum = torch.full_like(entropy, -1e300)  # of no tile yet; finite, since 0 * -inf is NaN
    for start, stop in grid.panels(shard.count):
        rows = shard.fetch(memory, start, stop)
        own = [(start + first, part) for first, part in zip(range(0, len(rows), tile_rows), rows.split(tile_rows))]
        for other_start, other_stop in grid.panels(shard.count):
            columns = rows if other_start == start else shard.fetch(memory, other_start, other_stop)
            for first, part in own[world.rank :: world.size]:
                here = slice(first, first + len(part))
                for other in columns.split(tile_rows):
                    z = (part / temperature) @ other.t()  # (T, T)
                    largest = z.amax(dim=1, keepdim=True)
                    log_p = z.sub_(largest).log_softmax(dim=1)
                    of_tile = -(log_p.exp() * log_p).sum(dim=1).double()
                    sum_of_tile = largest.double()[:, 0] + z.logsumexp(dim=1)
                    both = torch.logaddexp(log_sum[here], sum_of_tile)
                    before, added = log_sum[here] - both, sum_of_tile - both
                    entropy[here] = before.exp() * (entropy[here] - before) + added.exp() * (of_tile - added)
                    log_sum[here] = both
    return world.all_reduce_sum(entropy).to(memory.dtype)  # the other processes have 0 there


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
        grid, shard: as in that call.

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
