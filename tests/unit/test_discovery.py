"""Equations 1, 5 and 6, nearest-neighbour search and consistency."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.method.discovery import (
    anchor_count,
    consistency,
    discover,
    nearest_neighbours,
    select_anchors,
    similarity_entropy,
)
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import SAVED, Neighbourhoods
from lib.search.exact import _columns_by_partition, _columns_by_topk, nearest
from tests.helpers import oracles
from tests.helpers.rows import grid_rows, unit_rows


@pytest.mark.parametrize(
    ("size", "rate", "round_number", "expected"),
    [
        (50000, 0.25, 1, 12500),
        (50000, 0.25, 4, 50000),
        (50000, 0.25, 5, 50000),  # never more than all
        (1437, 0.25, 1, 359),
        (1437, 0.25, 3, 1077),
        (100, 0.29, 1, 29),  # 100 * 0.29 is 28.999... in floating point
        (10, 0.1, 3, 3),  # 0.1 * 3 is 0.30000000000000004
        (3, 0.25, 1, 0),
        (50000, 0.25, 0, 0),
    ],
)
def test_anchor_count(size, rate, round_number, expected):
    assert anchor_count(size, rate, round_number) == expected


@pytest.mark.parametrize("rounds", [3, 6, 7, 49])
def test_a_share_of_r_over_R_is_exact(rounds):
    """In floating point 49 * (1 / 49) is below 1, and the last round would miss an image."""
    assert [anchor_count(1000, Fraction(1, rounds), r) for r in range(rounds + 1)] == [
        1000 * r // rounds for r in range(rounds + 1)
    ]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), tau=st.sampled_from([0.05, 0.1, 1.0]), seed=st.integers(0, 2**31))
def test_entropy_matches_the_oracle(n, tau, seed):
    memory = unit_rows(n, 5, seed)
    entropy = similarity_entropy(memory, tau)
    np.testing.assert_allclose(entropy.numpy(), oracles.entropies(memory.double().numpy(), tau), atol=2e-5)


def test_entropy_of_duplicates_is_log_n():
    memory = torch.tensor([[0.6, 0.8]] * 7)
    assert similarity_entropy(memory, 0.1).tolist() == pytest.approx([math.log(7)] * 7, abs=1e-5)


def test_entropy_is_finite_where_probabilities_underflow():
    memory = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    entropy = similarity_entropy(memory, 1e-3)
    assert torch.isfinite(entropy).all()
    assert entropy.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_entropy_does_not_depend_on_the_tile():
    memory = unit_rows(50, 6, 0)
    whole = similarity_entropy(memory, 0.1)
    for budget in (1, 50, 170, 2**20):
        torch.testing.assert_close(similarity_entropy(memory, 0.1, budget), whole)


def test_the_lowest_entropies_become_anchors_and_ties_go_by_index():
    entropy = torch.tensor([2.0, 1.0, 3.0, 1.0, 0.5, 1.0])
    assert select_anchors(entropy, 3).tolist() == [4, 1, 3]
    assert select_anchors(entropy, 6).tolist() == [4, 1, 3, 5, 0, 2]
    assert select_anchors(torch.zeros(5), 2).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), dim=st.integers(1, 4), k=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_neighbours_match_brute_force_even_among_ties(n, dim, k, seed):
    memory = grid_rows(n, dim, seed)
    k = min(k, n - 1)
    anchors = torch.from_numpy(np.random.default_rng(seed).permutation(n)[: max(1, n // 2)])
    expected = [oracles.neighbours(memory.double().numpy(), a, k) for a in anchors.tolist()]
    assert nearest_neighbours(memory, anchors, k, "faiss").tolist() == expected
    assert nearest_neighbours(memory, anchors, k, "torch").tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 8])
def test_both_ways_of_selecting_the_largest_keep_the_first_of_equal_ones(k):
    sims = torch.randint(-2, 3, (300, 8), generator=torch.Generator().manual_seed(k)).float()
    sims[::7, 2] = float("-inf")  # a query's own row
    expected = [sorted(sorted(range(8), key=lambda column: (-row[column], column))[:k]) for row in sims.tolist()]
    assert _columns_by_partition(sims.numpy(), k).tolist() == expected
    assert _columns_by_topk(sims, k).tolist() == expected


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_search_without_own_row_returns_the_row_itself_first(backend):
    memory = unit_rows(30, 8, 3)
    similarities, indices = nearest(memory, memory, 3, None, backend)
    assert indices[:, 0].tolist() == list(range(30))
    assert similarities[:, 0].tolist() == pytest.approx([1.0] * 30, abs=1e-5)
    assert (similarities[:, 0] >= similarities[:, 1]).all()


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_all_duplicates_come_in_the_order_of_their_index(backend):
    memory = torch.ones(40, 3)
    _, indices = nearest(memory[:2], memory, 5, None, backend)
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2
    _, indices = nearest(memory[:2], memory, 5, torch.tensor([0, 1]), backend)
    assert indices.tolist() == [[1, 2, 3, 4, 5], [0, 2, 3, 4, 5]]


@pytest.mark.parametrize(("k", "own"), [(0, None), (6, None), (5, torch.tensor([0]))])
def test_too_many_neighbours_are_refused(k, own):
    with pytest.raises(ValueError, match="neighbours exceed the"):
        nearest(torch.ones(1, 2), torch.ones(5, 2), k, own)


def test_consistency_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    assert consistency(torch.tensor([0, 2]), torch.tensor([[1, 2], [3, 0]]), labels) == 0.5
    assert consistency(torch.tensor([0]), torch.tensor([[1]]), labels) == 1.0
    assert consistency(torch.tensor([], dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64), labels) is None


@pytest.mark.parametrize("backend", ["auto", "faiss", "torch"])
def test_discovery_by_brute_force(backend):
    memory, labels = unit_rows(37, 6, 5), torch.arange(37) % 3
    found = discover(memory, 2, 0.25, 2, 0.1, backend, labels)
    exact = memory.double().numpy()
    anchors = oracles.anchors(oracles.entropies(exact, 0.1), 18)
    neighbours = [oracles.neighbours(exact, a, 2) for a in anchors]
    assert found.anchor_indexes.tolist() == anchors
    assert found.neighbours.tolist() == neighbours
    assert found.consistency == pytest.approx(oracles.consistency(anchors, neighbours, labels.tolist()))
    assert sorted(found.anchor_indexes.tolist() + found.instance_indexes.tolist()) == list(range(37))


def test_labels_do_not_affect_discovery():
    memory = unit_rows(37, 6, 5)
    with_labels = discover(memory, 1, 0.25, 1, 0.1, "auto", torch.zeros(37, dtype=torch.int64))
    without = discover(memory, 1, 0.25, 1, 0.1)
    assert without.consistency is None
    assert torch.equal(with_labels.anchor_indexes, without.anchor_indexes)
    assert torch.equal(with_labels.neighbours, without.neighbours)


def test_neighbourhoods_survive_a_checkpoint():
    found = discover(unit_rows(20, 4, 1), 1, 0.5, 3, 0.1, "auto", torch.arange(20) % 2)
    saved = {name: getattr(found, name) for name in SAVED}
    again = Neighbourhoods(**saved)
    assert set(saved) == {
        "anchor_indexes", "instance_indexes", "position", "neighbours", "entropy", "consistency",
    }  # fmt: skip
    for name, value in saved.items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_discovery_does_not_change_the_bank():
    bank = MemoryBank(30, 4, 0.5)
    before = bank.memory.clone()
    discover(bank.memory, 1, 0.5, 1, 0.1)
    assert torch.equal(bank.memory, before)


def test_consistency_ignores_pairs_of_unknown_labels():
    labels = torch.tensor([0, 0, 1, -1, -1])
    assert consistency(torch.tensor([0, 1, 3, 2]), torch.tensor([[1], [2], [4], [3]]), labels) == 0.5
    assert consistency(torch.tensor([3, 0]), torch.tensor([[4], [3]]), labels) is None
    assert consistency(torch.tensor([], dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64), labels) is None
