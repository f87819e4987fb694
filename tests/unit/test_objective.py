"""Equations 2, 3, 4 and 7 and the bank (8) against float64 NumPy, a plain log-softmax, and cases by hand."""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT, and_loss
from tests.helpers import oracles
from tests.helpers.rows import random_members, unit_rows
from tests.helpers.runs import call


def test_probabilities_sum_to_one_and_match_the_definition():
    features, memory = unit_rows(3, 8, 0), unit_rows(20, 8, 1)
    pairs = [[and_loss(x[None], memory, torch.tensor([[j]]), 0.1) for j in range(20)] for x in features]
    p = torch.tensor(pairs).neg().exp()
    assert p.sum(dim=1).numpy() == pytest.approx(np.ones(3), abs=1e-5)
    for row, x in zip(p.numpy(), features.double().numpy()):
        assert row == pytest.approx(oracles.probabilities(x, memory.double().numpy(), 0.1), rel=1e-4)


def test_two_orthogonal_rows_by_hand():
    # x = m_0, m_1 orthogonal, tau = 1: p_00 = e / (e + 1)
    memory = torch.eye(2)
    loss = and_loss(memory[:1], memory, torch.tensor([[0]]), 1.0)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)), abs=1e-6)
    # with both rows in the set all probability is inside: the loss is 0
    assert and_loss(memory[:1], memory, torch.tensor([[0, 1]]), 1.0).item() == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40),
    b=st.integers(1, 9),
    k=st.integers(1, 5),
    tau=st.sampled_from([0.05, 0.07, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradient_match_the_oracle(n, b, k, tau, seed):
    k, b = min(k, n - 1), min(b, n)
    rng = np.random.default_rng(seed)
    memory, features = unit_rows(n, 6, seed), unit_rows(b, 6, seed + 1).requires_grad_()
    rows = rng.permutation(n)[:b]
    members = np.full((b, 1 + k), ABSENT)
    for line, i in zip(members, rows):
        line[0] = i
        if rng.random() < 0.5:  # an anchor
            line[1:] = rng.permutation([j for j in range(n) if j != i])[:k]
    sets = [[j for j in line if j != ABSENT] for line in members]

    loss = and_loss(features, memory, torch.from_numpy(members), tau)
    loss.backward()

    exact = features.detach().double().numpy(), memory.double().numpy(), sets, tau
    assert loss.item() == pytest.approx(oracles.loss(*exact), abs=2e-5)
    np.testing.assert_allclose(features.grad.numpy(), oracles.loss_gradient(*exact), atol=3e-5 / tau)


def test_no_gradient_reaches_the_bank():
    bank = MemoryBank(5, 4, 0.5)
    features = unit_rows(2, 4, 0).requires_grad_()
    and_loss(features, bank.memory, torch.tensor([[0], [1]]), 0.1).backward()
    assert bank.memory.grad is None
    assert not list(bank.parameters())
    assert features.grad.abs().sum() > 0


def test_a_probability_that_underflows_float32_still_has_a_loss():
    # logits 1 / tau = 1000 and -1000: p of the second row is exp(-2000), zero in float32 and in float64
    memory = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = and_loss(features, memory, torch.tensor([[1]]), 1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(2000.0)
    assert torch.isfinite(features.grad).all()


def test_a_batch_of_one_is_divided_by_its_own_size():
    features, memory = unit_rows(3, 4, 0), unit_rows(7, 4, 1)
    members = torch.tensor([[0], [1], [2]])
    one_by_one = [and_loss(features[i : i + 1], memory, members[i : i + 1], 0.1).item() for i in range(3)]
    assert and_loss(features, memory, members, 0.1).item() == pytest.approx(np.mean(one_by_one), abs=1e-5)


def test_duplicate_rows_share_the_probability():
    memory = torch.tensor([[1.0, 0.0]] * 4)
    loss = and_loss(memory[:1], memory, torch.tensor([[0, 2]]), 0.1)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)  # two of four equal rows


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 70),
    b=st.integers(1, 9),
    k=st.integers(0, 6),
    tau=st.sampled_from([0.01, 0.07, 0.1, 1.0]),
    tile=st.sampled_from([1, 7, 64, 2**20]),
    seed=st.integers(0, 2**31),
)
def test_value_and_gradient_equal_the_plain_loss(n, b, k, tau, tile, seed):
    memory, members = unit_rows(n, 6, seed), random_members(b, n, min(k, n - 1), seed)
    plain, tiled = (unit_rows(b, 6, seed + 1).requires_grad_() for _ in range(2))
    expected = oracles.softmax_loss(plain.double(), memory.double(), members, tau)
    loss = and_loss(tiled, memory, members, tau, tile)
    (3 * expected).backward()
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5 / tau)
    torch.testing.assert_close(tiled.grad, plain.grad, atol=2e-5 / tau, rtol=1e-3)


def test_loss_where_a_naive_softmax_underflows():
    memory = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = and_loss(features, memory, torch.tensor([[0]]), 1e-3, 1)
    loss.backward()
    assert loss.item() == pytest.approx(2000.0)
    assert features.grad[0].tolist() == pytest.approx([2000.0, 0.0])


def test_the_gradient_is_right_by_finite_differences():
    memory = unit_rows(20, 4, 0).double()
    features = unit_rows(3, 4, 1).double().requires_grad_()
    members = random_members(3, 20, 2, 2)
    assert torch.autograd.gradcheck(lambda x: and_loss(x, memory, members, 0.5, 21), (features,))


def test_no_gradient_is_computed_without_requires_grad():
    loss = and_loss(unit_rows(2, 4, 0), unit_rows(9, 4, 1), torch.tensor([[0], [1]]), 0.1)
    assert not loss.requires_grad


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_the_loss_holds_one_tile_at_a_time():
    """Peak of a process at N = 2,000,000, B = 64, for a tile of 64 MiB: the plain form needs three of 512 MB."""
    script = """
import torch
from lib.method.objective import and_loss

def loss(rows, tile):
    features = torch.nn.functional.normalize(torch.ones(64, 8), dim=1).requires_grad_()
    and_loss(features, memory[:rows], torch.arange(64)[:, None], 0.1, tile).backward()

def status(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name + ":"))

memory = torch.full((2_000_000, 8), 8**-0.5)
loss(1000, 2**12)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
before = status("VmRSS")
loss(2_000_000, 2**24)
print(status("VmHWM") - before)
"""
    status, out, err = call(program=("-c", script))
    assert status == 0, err
    tile = 4 * 2**24
    assert 0.9 * tile < int(out) < 1.25 * tile


def test_members_of_anchors_and_instances():
    found = Neighbourhoods.of(torch.tensor([3, 0]), torch.tensor([[1, 2], [4, 3]]), torch.zeros(5), None)
    assert found.members(torch.tensor([0, 1, 3])).tolist() == [[0, 4, 3], [1, -1, -1], [3, 1, 2]]
    assert found.position.tolist() == [1, -1, -1, 0, -1]
    assert found.instance_indexes.tolist() == [1, 2, 4]


def test_round_zero_sets_hold_the_image_alone():
    none = Neighbourhoods.none(4, 3, torch.device("cpu"))
    assert none.members(torch.tensor([2, 0])).tolist() == [[2], [0]]
    assert none.instance_indexes.tolist() == [0, 1, 2, 3]
    assert torch.isnan(none.entropy).all()


def test_bank_starts_uniform_and_not_normalised():
    bank = MemoryBank(4000, 12, 0.5, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(12 / 3)
    assert bank.memory.min() >= -bound
    assert bank.memory.max() <= bound
    values = np.sort(bank.memory.flatten().numpy())
    expected = np.linspace(-bound, bound, len(values))
    assert np.abs(values - expected).max() < 0.02 * bound  # the empirical distribution is the uniform one
    assert bank.memory.norm(dim=1).std() > 0.05


@settings(max_examples=30, deadline=None)
@given(eta=st.sampled_from([0.0, 0.25, 0.5, 0.9]), seed=st.integers(0, 2**31))
def test_bank_update_matches_the_oracle(eta, seed):
    bank = MemoryBank(9, 5, eta, torch.Generator().manual_seed(seed))
    features = unit_rows(4, 5, seed)
    indices = torch.tensor([7, 0, 3, 8])
    expected = oracles.bank_update(bank.memory.double().numpy(), indices.tolist(), features.double().numpy(), eta)
    bank.update(indices, features)
    np.testing.assert_allclose(bank.memory.numpy(), expected, atol=1e-6)


def test_bank_momentum_is_the_share_of_the_old_row():
    bank = MemoryBank(1, 2, 0.75)
    bank.memory.copy_(torch.tensor([[1.0, 0.0]]))
    bank.update(torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
    assert bank.memory[0].tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
