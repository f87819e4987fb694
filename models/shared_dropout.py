"""Dropout whose masks do not depend on how a batch is split among processes."""

from typing import Optional

import torch
from torch import Tensor, nn


class SharedDropout(nn.Dropout):
    """nn.Dropout whose masks can be drawn for a whole batch, of which each process takes the rows it has.

    Until `set_rows` is called it is nn.Dropout. Processes whose default generators are in the same state then draw the
    same masks.
    """

    _start: int = 0
    _total: Optional[int] = None

    def set_rows(self, start: int, total: int) -> None:
        """Set which rows of a batch of `total` the next forward pass gets: those from `start` on."""
        self._start, self._total = start, total

    def forward(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self._total is None:
            return super().forward(rows)
        kept = 1.0 - self.p
        # in float32 whatever the rows are: a generator may give other numbers for another type
        mask = torch.empty(self._total, *rows.shape[1:], device=rows.device).bernoulli_(kept).div_(kept)
        return rows * mask[self._start : self._start + len(rows)].to(rows.dtype)
