"""Parts of the speed benchmarks: the bare step, the rows of the end of an epoch, and the measured peak of memory."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.bare_step import BareStep
from benchmarks.epoch_end import WRITTEN, epoch_end
from benchmarks.memory import peak_beyond
from benchmarks.setting import Setting
from lib.nn.embedder import Embedder


def test_the_bare_step_applies_the_given_gradient():
    network = nn.Linear(3, 2, bias=False)
    before = network.weight.detach().clone()
    images, upstream = torch.randn(4, 3), torch.randn(4, 2)
    embedder = Embedder(network, torch.device("cpu"))
    step = BareStep(embedder, torch.optim.SGD(network.parameters(), lr=0.1))
    for number in (1, 2):
        assert step(images, upstream, 4).shape == ()
        torch.testing.assert_close(network.weight.detach(), before - 0.1 * number * upstream.t() @ images)


def test_the_end_of_an_epoch_is_the_sum_of_its_synchronous_parts():
    *parts, whole = epoch_end(Setting(torch.device("cpu"), 1, images=50))
    waited_for = [row.ours for row in parts if not row.what.endswith(WRITTEN)]
    assert len(parts) == len(waited_for) + 1 == 5
    assert whole.ours == pytest.approx(sum(waited_for))
    assert all(row.textbook is None and row.limit is None for row in parts)


CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(params=["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def start_method(request, monkeypatch):
    """A benchmark starts fresh interpreters, each of which imports PyTorch; the fork server imports it once for all."""
    context = multiprocessing.get_context(request.param)
    context.set_forkserver_preload(["benchmarks.memory"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


def prepare(freed, small, held, kept):
    """A call that holds `held` MiB, after a preparation that keeps `kept` MiB and has freed `freed` MiB in one piece
    and `small` MiB in pieces of 64 KiB."""
    rows = torch.ones(kept, MIB // 4)
    torch.ones(freed, MIB // 4).mul(2)
    pieces = [np.ones(2**13) for _ in range(16 * small)]
    del pieces[::2], pieces

    def call():
        return torch.ones(held, MIB // 4), rows

    return call


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize(("freed", "small"), [(0, 0), (400, 0), (20, 200)])
def test_the_peak_counts_memory_that_the_preparation_freed(freed, small):
    measured = peak_beyond(prepare, freed, small, 150, 50, device=CPU)
    if measured is None:
        pytest.skip("the peak cannot be read here")
    assert measured / MIB == pytest.approx(150, rel=0.1)


def freeing(size):
    """A call that takes `size` MiB twice, one after the other, and never both."""

    def call():
        for _ in range(2):
            torch.ones(size, MIB // 4)

    return call


@pytest.mark.usefixtures("start_method")
def test_memory_that_a_call_frees_counts_once_if_it_is_used_again():
    measured = peak_beyond(freeing, 150, device=CPU)
    if measured is None:
        pytest.skip("the peak cannot be read here")
    assert measured / MIB == pytest.approx(150, rel=0.1)
