"""Two and three Gloo processes against one: exchanges, loss, bank, batch norm, discovery and search.

The processes start once for each P and run all jobs of tests/helpers/distributed_jobs.py.
"""

import numpy as np
import pytest
import torch
from torch import nn

from lib.distributed.world import World
from lib.method.memory_bank import MemoryBank
from lib.method.objective import ABSENT
from lib.nn import sync_batch_norm
from lib.nn.sync_batch_norm import SynchronisedBatchNorm, synchronise, without_synchronisation
from tests.helpers import distributed_jobs as jobs
from tests.helpers import oracles
from tests.helpers.processes import in_processes
from tests.helpers.rows import random_members, unit_rows


@pytest.fixture(scope="module")
def alone():
    return jobs.all_jobs(World.alone())


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    """The results of each of P processes."""
    return in_processes(jobs.all_jobs, request.param, tmp_path_factory.mktemp("processes"))


def assert_same(found, expected, **tolerance):
    """Compare nested plain data, tensors with a tolerance."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value, **tolerance)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other, **tolerance)
    else:
        assert found == expected


EXACT = {"atol": 0.0, "rtol": 0.0}


def test_collectives(together):
    size = len(together)
    for found in (each["exchanges"] for each in together):
        assert found["sum"].tolist() == [size, size * (size - 1) / 2]
        assert found["largest"].tolist() == [0.0, float("-inf")]
        expected = [[10.0, 11.0]] if size == 2 else [[10.0, 11.0], [20.0, 21.0], [22.0, 23.0]]
        assert found["rows"].tolist() == expected
        assert found["numbers"].tolist() == [[rank] * 2 for rank in range(size)]
        assert found["none"].shape == (0, 3)
        assert found["counts"] == [2 * rank for rank in range(size)]
        assert found["sent"].tolist() == [size - 1]


def test_one_process_needs_no_group():
    world, rows = World.alone(), torch.ones(3, 2)
    assert world.gather_rows(rows) is rows
    assert world.all_reduce_sum(rows) is rows
    assert world.all_reduce_max(rows) is rows
    assert world.broadcast(rows) is rows
    assert world.counts(3) == [3]
    world.barrier()
    assert world.is_first


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_all_rows_and_differ_by_one(size, count):
    shares = [World(rank, size, torch.device("cpu")).rows(count) for rank in range(size)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_any_range_can_be_fetched(alone, together):
    for found in (*together, alone):
        assert all(found["fetches"].values())


def test_loss_and_gradient_are_those_of_one_process(alone, together):
    for found in together:
        assert_same(found["losses"], alone["losses"], atol=2e-5, rtol=1e-5)


def test_loss_and_gradient_match_the_oracle(together):
    for n, b, k in jobs.BATCHES:
        sets = [[j for j in row if j != ABSENT] for row in random_members(b, n, k, n).tolist()]
        exact = unit_rows(b, 6, n + 1).double().numpy(), unit_rows(n, 6, n).double().numpy(), sets, 0.1
        found = together[0]["losses"][n, b, k]
        assert found["loss"].item() == pytest.approx(oracles.loss(*exact), abs=1e-4)
        np.testing.assert_allclose(found["gradient"].numpy() / 3, oracles.loss_gradient(*exact), atol=3e-4)


def test_the_bank_is_initialised_updated_and_saved_as_in_one_process(alone, together):
    for size in (2, 101):
        assert_same(together[0]["banks"][size, "start"], alone["banks"][size, "start"], **EXACT)
        assert_same(together[0]["banks"][size, "loaded"], unit_rows(size, 5, 3), **EXACT)
    assert_same(together[0]["banks"], alone["banks"])
    for found in together[1:]:
        assert all((value is None) == ("loss" not in key) for key, value in found["banks"].items())


def test_leave_one_out_is_that_of_one_process(alone, together):
    for found in together:
        assert_same(found["leave_one_out"], alone["leave_one_out"])


def test_the_bank_draws_one_stream_of_random_numbers(monkeypatch):
    whole = MemoryBank(50, 3, 0.5, torch.Generator().manual_seed(1)).memory
    assert torch.equal(whole, torch.rand(50, 3, generator=torch.Generator().manual_seed(1)).mul_(2).sub_(1))
    monkeypatch.setattr("lib.method.memory_bank.BLOCK_ROWS", 7)
    parts = [
        MemoryBank(50, 3, 0.5, torch.Generator().manual_seed(1), World(rank, 4, torch.device("cpu"))).memory
        for rank in range(4)
    ]
    assert [len(part) for part in parts] == [12, 13, 12, 13]
    assert torch.equal(torch.cat(parts), whole)


def test_a_bank_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\), expected \(5, 3\)"):
        MemoryBank(5, 3, 0.5).load_whole(torch.zeros(4, 3))


def test_batch_norm_is_that_of_the_whole_batch(alone, together):
    for found in together:
        for key, expected in alone["batch_norms"].items():
            tolerance = 1e-8 if key[0] == "images" else 5e-5  # float64 and float32
            assert_same(found["batch_norms"][key], expected, atol=tolerance, rtol=tolerance)
        for each in found["batch_norms"].values():
            assert each["same keys"]
            torch.testing.assert_close(each["evaluated"], each["plain"], atol=1e-5, rtol=1e-5)


def test_batch_norm_keeps_a_variance_that_is_small_beside_the_mean():
    """Sums of squares in float32 would lose a variance of 1 beside a mean of 10,000."""
    rows = 1e4 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.batch_norm(rows.double(), None, None, training=True)
    torch.testing.assert_close(SynchronisedBatchNorm(2, World.alone())(rows).double(), expected, atol=2e-3, rtol=0)


def test_batch_norm_by_finite_differences():
    network = SynchronisedBatchNorm(3, World.alone()).double()
    nn.init.uniform_(network.weight)
    rows = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (rows,))


def test_batch_norm_keeps_half_precision_and_refuses_a_single_value():
    layer = SynchronisedBatchNorm(2, World.alone())
    assert layer(torch.randn(4, 2).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cannot learn from 1 value"):
        layer(torch.randn(1, 2))


def test_batch_norm_in_half_precision_is_that_of_pytorch():
    torch.manual_seed(0)
    ours, plain = SynchronisedBatchNorm(8, World.alone()), nn.BatchNorm2d(8)
    rows, upstream = torch.randn(16, 8, 4, 4).bfloat16(), torch.randn(16, 8, 4, 4).bfloat16()
    found = []
    for layer, kind in ((ours, torch.bfloat16), (plain, torch.float32)):
        given = rows.clone().to(kind).requires_grad_()
        output = layer(given)
        output.backward(upstream.to(kind))
        found.append((output.detach().float(), given.grad.float(), layer.weight.grad, layer.running_var))
    torch.testing.assert_close(found[0], found[1], atol=0.03, rtol=0.02)


def test_one_process_keeps_its_batch_norm():
    network = nn.Sequential(nn.BatchNorm2d(3))
    assert synchronise(network, World.alone()) is network
    assert type(network[0]) is nn.BatchNorm2d


def test_discovery_finds_the_same_on_any_number_of_processes(alone, together):
    for found in together:
        assert_same(found["discoveries"], together[0]["discoveries"], **EXACT)
    for key, expected in alone["discoveries"].items():
        found = together[0]["discoveries"][key]
        assert_same(found["entropy"], expected["entropy"], atol=1e-6, rtol=1e-6)
        for name in ("anchor_indexes", "instance_indexes", "position", "neighbours", "consistency", "recall"):
            assert_same(found[name], expected[name], **EXACT)


def test_discovery_matches_the_oracle(together):
    for name, (memory, temperature) in jobs.banks_to_discover().items():
        exact = memory.double().numpy()
        entropy = oracles.entropies(exact, temperature)
        for (bank, k, _, _), found in together[0]["discoveries"].items():
            if bank == name:
                np.testing.assert_allclose(found["entropy"].numpy(), entropy, atol=1e-4)
                for anchor, neighbours in zip(found["anchor_indexes"].tolist(), found["neighbours"].tolist()):
                    assert neighbours == oracles.neighbours(exact, anchor, k)


def test_searches_find_the_same_on_any_number_of_processes(alone, together):
    for found in together:
        assert_same(found["searches"], alone["searches"], atol=1e-6, rtol=1e-6)


def test_approximate_search_finds_nearly_all_and_reports_its_recall(alone, together):
    for found in (each["approximate"] for each in (*together, alone)):
        assert found["recall"] > 0.9
        assert found["recall of a round"] > 0.9
        assert found["repeats"]
        assert found["exact similarities"]
        assert found["few"]
        assert not found["itself"]


def test_whitened_features_are_those_of_one_process(alone, together):
    for found in together:
        assert_same(found["feature_spaces"], alone["feature_spaces"], atol=2e-5, rtol=1e-5)
    assert alone["feature_spaces"][23, "backbone"]["train"].shape == (23, 128)


def test_bank_statistics_are_those_of_one_process(alone, together):
    for found in together:
        assert_same(found["sampled_statistics"], alone["sampled_statistics"], atol=2e-6, rtol=1e-6)
    assert alone["sampled_statistics"]["two"].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_of_no_images_computes_in_float32(monkeypatch, dtype):
    """Statistics are float32 for images of any dtype; PyTorch would take the dtype of the empty batch."""
    seen = []
    monkeypatch.setattr(sync_batch_norm, "HAS_EMPTY_SYNC_BATCH_NORM", True)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda layer, rows: seen.append((len(rows), rows.dtype)) or rows)
    plain = nn.BatchNorm2d(3)
    layer = synchronise(plain, World(0, 2, torch.device("cuda")))
    assert isinstance(layer, nn.SyncBatchNorm)  # DistributedDataParallel looks for it
    assert layer.weight is plain.weight
    for count in (0, 2):
        assert layer(torch.zeros(count, 3, 2, 2, dtype=dtype)).dtype == dtype
    assert seen == [(0, torch.float32), (2, dtype)]
    assert type(without_synchronisation(layer)) is nn.BatchNorm2d


def test_our_batch_norm_replaces_pytorchs_where_it_refuses_empty_batches(monkeypatch):
    monkeypatch.setattr(sync_batch_norm, "HAS_EMPTY_SYNC_BATCH_NORM", False)
    assert isinstance(synchronise(nn.BatchNorm2d(3), World(0, 2, torch.device("cuda"))), SynchronisedBatchNorm)
