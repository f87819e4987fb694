"""Entropy, nearest neighbours and RankMe of the memory bank, against oracles and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.distributed.world import World
from lib.evaluation.bank_statistics import BankStatistics, bank_statistics, effective_rank
from lib.search.exact import sample_rows
from tests.helpers import oracles
from tests.helpers.rows import unit_rows


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), largest=st.integers(1, 50), tau=st.sampled_from([0.07, 0.1, 1.0]), seed=st.integers(0, 99))
def test_bank_statistics_match_the_oracle(n, largest, tau, seed):
    memory = unit_rows(n, 5, seed)
    rows = sample_rows(n, largest)
    found = bank_statistics(memory, rows, tau)
    exact = memory.double().numpy()
    assert found.entropy.numpy() == pytest.approx(oracles.entropies(exact, tau)[rows.numpy()], abs=2e-6)
    assert found.nearest.tolist() == [oracles.neighbours(exact, row, 1)[0] for row in rows.tolist()]
    cosines = [exact[row] @ exact[near] for row, near in zip(rows.tolist(), found.nearest.tolist())]
    assert found.cosine.numpy() == pytest.approx(cosines, abs=1e-6)
    assert torch.equal(found.features, memory[rows])


def test_of_equal_neighbours_the_first_is_the_nearest():
    memory = unit_rows(1, 8, 0).repeat(30, 1)
    assert bank_statistics(memory, torch.arange(30), 0.1).nearest.tolist() == [1] + [0] * 29


def test_sampled_rows_are_evenly_spaced():
    assert sample_rows(10, 4).tolist() == [0, 2, 5, 7]
    assert sample_rows(3, 4).tolist() == [0, 1, 2]
    assert len(sample_rows(1_281_167)) == 5000


@pytest.mark.parametrize("count", [300, 24, 7])
def test_the_effective_rank_is_that_of_the_singular_values(count):
    rows = unit_rows(count, 24, 3) * torch.logspace(-3, 0, 24) + 0.1
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    p = values / values.sum() + 1e-7
    assert effective_rank(rows, World.alone()) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_the_effective_rank_by_hand():
    assert effective_rank(torch.eye(6), World.alone()) == pytest.approx(6, abs=1e-4)
    assert effective_rank(unit_rows(1, 6, 0).repeat(9, 1), World.alone()) == pytest.approx(1, abs=1e-4)
    two = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # p = 3/4, 1/4
    expected = (4 / 3) ** 0.75 * 4**0.25
    assert effective_rank(two, World.alone()) == pytest.approx(expected, abs=1e-4)


def statistics_of(nearest):
    count = len(nearest)
    empty = torch.zeros(count)
    return BankStatistics(torch.arange(count), empty, torch.tensor(nearest), empty, torch.zeros(count, 2))


def test_share_of_rows_that_kept_their_neighbour():
    assert statistics_of([1, 0, 3, 2]).kept(torch.tensor([1, 2, 3, 0])) == 0.5
    assert statistics_of([1, 0]).kept(None) is None
    assert statistics_of([1, 0]).kept(torch.tensor([1, 0, 0])) is None
