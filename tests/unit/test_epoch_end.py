"""The benchmark of what an epoch ends with runs, and the parts that a run waits for make up the whole."""

import pytest
import torch

from benchmarks.epoch_end import WRITTEN, epoch_end
from benchmarks.setting import Setting


def test_the_parts_that_are_waited_for_make_up_the_whole():
    *parts, whole = epoch_end(Setting(torch.device("cpu"), 1, images=50))
    waited_for = [row.ours for row in parts if not row.what.endswith(WRITTEN)]
    assert len(parts) == len(waited_for) + 1 == 5
    assert whole.ours == pytest.approx(sum(waited_for))
    assert all(row.textbook is None and row.limit is None for row in parts)
