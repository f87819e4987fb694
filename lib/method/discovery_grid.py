"""How discovery cuts the N x N similarities so that what it holds at a time fits into a given memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

CPU_TILE_ROWS = 1024
"""Rows of a tile on a CPU: 4 MiB of similarities; of 256, 512 and 1024 the fastest at N = 20,000."""

GPU_TILE_ROWS = 4096
"""Rows of a tile on a GPU: 64 MiB of similarities, few launches."""

MEMORY_BUDGET = 2**30
"""Bytes that discovery may hold beyond the bank and a few numbers for each image."""

GROUP = 8
"""Tiles whose maxima are kept until they are sorted in: sorting one at a time would cost more than the products."""

_TILE_BYTES = 16
"""For each similarity of a tile: itself, its exponential, and what sorting the tile for k neighbours takes."""


@dataclass(frozen=True)
class Grid:
    """Tiles of T x T similarities, of a panel of rows and a panel of columns that are here at a time.

    The tiles do not depend on the number of processes, and so neither do the sums over them.

    Attributes:
        tile_rows: T.
        panel_rows: rows of a panel, a multiple of T.
    """

    tile_rows: int
    panel_rows: int

    @classmethod
    def within(cls, memory_budget: int, memory: Tensor) -> "Grid":
        """The largest panels, and tiles of the usual size if they fit, for bank rows like those of `memory`.

        Raises:
            ValueError: the budget, in bytes, does not hold one tile of a single row.
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
        """What it needs: two panels with the maxima of their tiles, and a tile."""
        return _panel_row_bytes(memory) * self.panel_rows + _TILE_BYTES * self.tile_rows**2

    def tiles(self, count: int) -> int:
        """How many tiles span `count` rows."""
        return -(-count // self.tile_rows)

    def panels(self, count: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """(first row, row after the last) of each panel of `count` rows, from row `start` on."""
        for first in range(start, count, self.panel_rows):
            yield first, min(first + self.panel_rows, count)


def _panel_row_bytes(memory: Tensor) -> int:
    return 2 * memory.element_size() * memory.shape[1] + 4 * (GROUP + 1)
