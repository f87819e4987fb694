"""The one-pass discovery against the plain one and against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.distributed.world import Shard
from lib.method.discovery import discover, similarity_entropy
from lib.method.tiled_discovery import (
    MEMORY_BUDGET,
    BestTiles,
    Grid,
    entropies_and_best_tiles,
    neighbours_from_best_tiles,
    one_shift_fits,
    streamed_entropies,
    tiles_to_keep,
)
from tests.helpers import oracles
from tests.helpers.rows import grid_rows, unit_rows


def one_pass(memory, tau, anchors, k, tile, panel_tiles=2):
    """Entropies (N,) and neighbours (A, K) by tiles of `tile` rows and panels of a few tiles."""
    shard, grid = Shard.whole(memory), Grid(tile, panel_tiles * tile)
    entropy, best = entropies_and_best_tiles(memory, tau, tiles_to_keep(k, grid.tiles(len(memory))), grid, shard)
    return entropy, neighbours_from_best_tiles(memory, anchors, k, best, grid, shard)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(2, 60),
    k=st.integers(1, 8),
    tile=st.sampled_from([1, 3, 16, 100]),  # of 60 rows with tiles of one: many groups, many panels
    tau=st.sampled_from([0.05, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_entropies_and_neighbours_match_the_oracle(n, k, tile, tau, seed):
    memory, k = unit_rows(n, 5, seed), min(k, n - 1)
    assert one_shift_fits(memory, tau, Shard.whole(memory))
    anchors = torch.from_numpy(np.random.default_rng(seed).permutation(n)[: max(1, n // 2)])
    entropy, found = one_pass(memory, tau, anchors, k, tile)
    exact = memory.double().numpy()
    np.testing.assert_allclose(entropy.numpy(), oracles.entropies(exact, tau), atol=3e-5)
    assert found.tolist() == [oracles.neighbours(exact, a, k) for a in anchors.tolist()]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 40), k=st.integers(1, 6), tile=st.sampled_from([1, 4, 64]), seed=st.integers(0, 2**31))
def test_ties_go_to_the_lower_index_whatever_the_tile(n, k, tile, seed):
    """Rows of small integers: equal similarities are exactly equal."""
    memory, k = grid_rows(n, 3, seed), min(k, n - 1)
    _, found = one_pass(memory, 1.0, torch.arange(n), k, tile, panel_tiles=3)
    assert found.tolist() == [oracles.neighbours(memory.double().numpy(), a, k) for a in range(n)]


def test_rows_of_the_initial_bank_fit_one_shift():
    memory = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) - 0.5  # as the bank begins
    assert one_shift_fits(memory, 0.1, Shard.whole(memory))
    entropy, _ = one_pass(memory, 0.1, torch.arange(5), 1, 7)
    torch.testing.assert_close(entropy, similarity_entropy(memory, 0.1), atol=1e-4, rtol=1e-4)


def test_rows_of_very_different_length_are_refused():
    memory = torch.tensor([[3.0, 0.0], [0.1, 0.0]])
    assert not one_shift_fits(memory, 0.1, Shard.whole(memory))
    assert one_shift_fits(memory, 1.0, Shard.whole(memory))


@pytest.mark.parametrize("tile", [1, 2, 7])
def test_duplicates_have_entropy_log_n(tile):
    entropy, neighbours = one_pass(torch.tensor([[0.6, 0.8]] * 7), 0.1, torch.arange(7), 1, tile)
    assert entropy.tolist() == pytest.approx([np.log(7)] * 7, abs=1e-5)
    assert neighbours.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 50),
    tile=st.sampled_from([1, 4, 64]),
    tau=st.sampled_from([1e-3, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_streamed_entropies_of_rows_of_any_length(n, tile, tau, seed):
    memory = unit_rows(n, 5, seed) * torch.linspace(0.1, 3, n)[:, None]
    streamed = streamed_entropies(memory, tau, Grid(tile, 2 * tile), Shard.whole(memory))
    torch.testing.assert_close(streamed, similarity_entropy(memory, tau), atol=2e-4, rtol=1e-4)


def test_rows_of_very_different_length_are_discovered_all_the_same():
    memory = unit_rows(40, 5, 2) * torch.linspace(0.1, 5, 40)[:, None]
    found = discover(memory, 2, 0.25, 3, 0.1, memory_budget=2**12)
    exact = memory.double().numpy()
    assert found.anchor_indexes.tolist() == oracles.anchors(oracles.entropies(exact, 0.1), 20)
    assert found.neighbours.tolist() == [oracles.neighbours(exact, a, 3) for a in found.anchor_indexes.tolist()]


def test_best_tiles_by_hand():
    best = BestTiles(2, torch.zeros(1), 3)
    best.add(1, torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 6.0]]), 7)
    best.add(0, torch.tensor([[0.5, 2.5]]), 2)
    assert best.value[:, 1:].tolist() == [[3.0, 6.0], [2.5, 5.0]]
    assert best.tile[:, 1:].tolist() == [[8, 9], [2, 7]]
    assert best.value[:, 0].tolist() == [0.5, float("-inf")]


@pytest.mark.parametrize("budget", [2**12, 2**16, 2**20, MEMORY_BUDGET])
@pytest.mark.parametrize("dim", [2, 128])
def test_panels_and_tile_fit_into_the_budget(budget, dim):
    memory = torch.zeros(1, dim)
    grid = Grid.within(budget, memory)
    assert grid.panel_rows % grid.tile_rows == 0
    assert grid.bytes(memory) <= budget
    assert Grid(grid.tile_rows, grid.panel_rows + grid.tile_rows).bytes(memory) > budget


def test_a_memory_budget_below_one_tile_is_refused():
    with pytest.raises(ValueError, match="memory budget of 100 bytes"):
        Grid.within(100, torch.zeros(1, 128))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_small_memory_budget_does_not_change_the_result(k, backend):
    memory = unit_rows(150, 6, 4)
    memory[100:110] = memory[3]
    usual, small = (
        discover(memory, 3, 0.25, k, 0.1, backend),
        discover(memory, 3, 0.25, k, 0.1, backend, None, None, 2**11),
    )
    torch.testing.assert_close(usual.entropy, small.entropy)
    assert torch.equal(usual.anchor_indexes, small.anchor_indexes)
    assert torch.equal(usual.neighbours, small.neighbours)


@pytest.mark.parametrize("k", [1, 5])
def test_no_allocation_is_larger_than_the_budget_or_a_few_numbers_a_row(k):
    """N = 200 in 8 KiB: similarities would take 160 kB, one maximum for each row and tile 20 kB, a bank 26 kB."""
    from torch.profiler import ProfilerActivity, profile

    memory, budget = unit_rows(200, 32, 0), 2**13
    shard, grid = Shard.whole(memory), Grid.within(budget, memory)
    keep = tiles_to_keep(k, grid.tiles(200))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _, best = entropies_and_best_tiles(memory, 0.1, keep, grid, shard)
        neighbours_from_best_tiles(memory, torch.arange(200), k, best, grid, shard)
    largest = max(allocation(event) for event in recorded.events())
    assert 0 < largest <= max(budget, 8 * (keep + k) * 200)
    assert 2 * largest < 4 * grid.tiles(200) * 200


def allocation(event):
    size = getattr(event, "self_cpu_memory_usage", None)
    return size if size is not None else event.cpu_memory_usage
