"""The benchmark of what an epoch ends with runs, and its parts make up the whole."""

import pytest
import torch

from benchmarks.epoch_end import epoch_end
from benchmarks.setting import Setting


def test_the_parts_make_up_the_whole():
    *parts, whole = epoch_end(Setting(torch.device("cpu"), 1, images=50))
    assert len(parts) == 4
    assert whole.ours == pytest.approx(sum(row.ours for row in parts))
    assert all(row.textbook is None and row.limit is None for row in parts)
