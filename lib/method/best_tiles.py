"""The few tiles in which each row has its largest similarities."""

import torch
from torch import Tensor

from lib.distributed.world import World

CHUNK_ELEMENTS = 2**18
"""Maxima that are sorted at a time."""


class BestTiles:
    """For each of N rows the `keep` largest of its tile maxima so far, and which tiles they are of.

    Attributes:
        value: (keep, N) float32, largest first, -inf where there are fewer.
        tile: (keep, N) int32.
    """

    def __init__(self, keep: int, like: Tensor, count: int):
        self.value = like.new_full((keep, count), float("-inf"))
        self.tile = torch.full((keep, count), -1, dtype=torch.int32, device=like.device)

    @staticmethod
    def bytes(keep: int, count: int) -> int:
        """The memory of `keep` tiles for each of `count` rows."""
        return 8 * keep * count

    def offer(self, start: int, maxima: Tensor, first_tile: int) -> None:
        """Take in the maxima of more tiles; -inf offers nothing.

        Args:
            start: first of the rows they belong to.
            maxima: (M, R), of R rows in the M tiles from `first_tile` on. No tile twice for a row.
        """
        tiles = torch.arange(first_tile, first_tile + len(maxima), dtype=torch.int32, device=maxima.device)
        for offset in range(0, maxima.shape[1], max(1, CHUNK_ELEMENTS // len(maxima))):
            part = maxima[:, offset : offset + max(1, CHUNK_ELEMENTS // len(maxima))]
            rows = slice(start + offset, start + offset + part.shape[1])
            self._take(rows, part, tiles[:, None].expand(-1, part.shape[1]))

    def merge(self, world: World) -> None:
        """The best of all processes, on each of them."""
        keep, count = self.value.shape
        if world.size == 1:
            return
        step = max(1, CHUNK_ELEMENTS // (keep * world.size))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            values = world.gather_rows(self.value[:, rows], [keep] * world.size)
            tiles = world.gather_rows(self.tile[:, rows], [keep] * world.size)
            self.value[:, rows] = float("-inf")  # this process's own come back with those of all
            self._take(rows, values, tiles)

    def _take(self, rows: slice, values: Tensor, tiles: Tensor) -> None:
        values = torch.cat([self.value[:, rows], values])
        tiles = torch.cat([self.tile[:, rows], tiles])
        self.value[:, rows], which = values.topk(len(self.value), dim=0)
        self.tile[:, rows] = tiles.gather(0, which)
