"""The one-pass discovery against the plain one and against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.method.discovery import similarity_entropy
from lib.method.tiled_discovery import entropies_and_maxima, neighbours_from_maxima, suits
from tests import oracles
from tests.test_discovery import grid_rows
from tests.test_objective import unit_rows


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(2, 60),
    k=st.integers(1, 8),
    tile=st.sampled_from([1, 3, 16, 100]),
    tau=st.sampled_from([0.05, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_entropies_and_neighbours_match_the_oracle(n, k, tile, tau, seed):
    memory, k = unit_rows(n, 5, seed), min(k, n - 1)
    assert suits(memory, tau)
    entropy, maxima = entropies_and_maxima(memory, tau, tile)
    exact = memory.double().numpy()
    np.testing.assert_allclose(entropy.numpy(), oracles.entropies(exact, tau), atol=3e-5)
    anchors = torch.from_numpy(np.random.default_rng(seed).permutation(n)[: max(1, n // 2)])
    found = neighbours_from_maxima(memory, anchors, k, maxima, tile)
    assert found.tolist() == [oracles.neighbours(exact, a, k) for a in anchors.tolist()]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 40), k=st.integers(1, 6), tile=st.sampled_from([1, 4, 64]), seed=st.integers(0, 2**31))
def test_ties_go_to_the_lower_index_whatever_the_tile(n, k, tile, seed):
    """Rows of small integers: equal similarities are exactly equal."""
    memory, k = grid_rows(n, 3, seed), min(k, n - 1)
    _, maxima = entropies_and_maxima(memory, 1.0, tile)
    found = neighbours_from_maxima(memory, torch.arange(n), k, maxima, tile)
    assert found.tolist() == [oracles.neighbours(memory.double().numpy(), a, k) for a in range(n)]


def test_rows_that_are_not_of_unit_length_are_within_reach():
    memory = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) - 0.5  # as the bank begins
    assert suits(memory, 0.1)
    entropy, _ = entropies_and_maxima(memory, 0.1, 7)
    torch.testing.assert_close(entropy, similarity_entropy(memory, 0.1), atol=1e-4, rtol=1e-4)


def test_rows_of_very_different_length_are_refused():
    memory = torch.tensor([[3.0, 0.0], [0.1, 0.0]])
    assert not suits(memory, 0.1)
    assert suits(memory, 1.0)


@pytest.mark.parametrize("tile", [1, 2, 7])
def test_duplicates_have_entropy_log_n(tile):
    entropy, _ = entropies_and_maxima(torch.tensor([[0.6, 0.8]] * 7), 0.1, tile)
    assert entropy.tolist() == pytest.approx([np.log(7)] * 7, abs=1e-5)
