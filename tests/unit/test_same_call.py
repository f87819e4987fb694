"""What tells weights apart that two machines have read."""

from pathlib import Path

import pytest
import torch

from lib.commands.call import _start_digest
from lib.commands.start import Fresh, FromWeights, Resumed
from lib.pretrained.weights_file import WeightsFile

TENSORS = [
    torch.arange(6.0).view(2, 3).t(),
    torch.ones(2, dtype=torch.bfloat16),
    torch.tensor(3),
    torch.tensor([True, False]),
    torch.empty(0, 4),
]


def read(tensors, memory=None, epoch=1):
    weights = {str(number): tensor for number, tensor in enumerate(tensors)}
    saved = {"round": 0, "epoch": epoch, "net": weights, "npc": {"memory": torch.ones(2, 2)}}
    return _start_digest(Resumed(saved, Path("f"))) + _start_digest(FromWeights(WeightsFile("f", "k", weights, memory)))


@pytest.mark.parametrize("number", range(4))
def test_a_value_that_differs_is_seen_in_any_type(number):
    others = [tensor.clone() for tensor in TENSORS]
    assert read(others) == read(TENSORS)
    first = (0,) * others[number].dim()
    others[number][first] = 0 if others[number][first] else 1
    assert read(others) != read(TENSORS)


def test_bank_and_place_in_the_run_count():
    assert read(TENSORS, torch.zeros(2)) != read(TENSORS)
    assert read(TENSORS, epoch=2) != read(TENSORS)
    assert _start_digest(Fresh()) == _start_digest(Fresh()) != read(TENSORS)
