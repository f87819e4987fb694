"""What the benchmarks say a call takes: a call of known size, after preparations of every size."""

import multiprocessing

import numpy as np
import pytest
import torch

from benchmarks.memory import peak_beyond

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(autouse=True, params=["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def beginning(request, monkeypatch):
    """A benchmark starts fresh interpreters, each of which imports PyTorch; here one imports it for all."""
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


@pytest.mark.parametrize(("freed", "small"), [(0, 0), (400, 0), (20, 200)])
def test_what_was_freed_before_hides_nothing(freed, small):
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


def test_what_a_call_frees_it_may_use_again():
    measured = peak_beyond(freeing, 150, device=CPU)
    if measured is None:
        pytest.skip("the peak cannot be read here")
    assert measured / MIB == pytest.approx(150, rel=0.1)
