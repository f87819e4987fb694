"""Equations 2, 3 and 7 and the bank (8) against float64 NumPy and against cases by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT, and_loss, log_probabilities
from tests.helpers import oracles
from tests.helpers.rows import unit_rows


def test_probabilities_sum_to_one_and_match_the_definition():
    features, memory = unit_rows(3, 8, 0), unit_rows(20, 8, 1)
    p = log_probabilities(features, memory, 0.1).exp()
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
