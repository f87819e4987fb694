"""The tiled loss against the plain one: value, gradient, memory."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.method.objective import and_loss
from lib.method.tiled_loss import tiled_and_loss
from tests.helpers.rows import random_members, unit_rows
from tests.helpers.runs import call


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
    expected = and_loss(plain.double(), memory.double(), members, tau)
    loss = tiled_and_loss(tiled, memory, members, tau, tile)
    (3 * expected).backward()
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5 / tau)
    torch.testing.assert_close(tiled.grad, plain.grad, atol=2e-5 / tau, rtol=1e-3)


def test_underflow_of_a_naive_softmax():
    memory = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = tiled_and_loss(features, memory, torch.tensor([[0]]), 1e-3, 1)
    loss.backward()
    assert loss.item() == pytest.approx(2000.0)
    assert features.grad[0].tolist() == pytest.approx([2000.0, 0.0])


def test_the_gradient_is_right_by_finite_differences():
    memory = unit_rows(20, 4, 0).double()
    features = unit_rows(3, 4, 1).double().requires_grad_()
    members = random_members(3, 20, 2, 2)
    assert torch.autograd.gradcheck(lambda x: tiled_and_loss(x, memory, members, 0.5, 21), (features,))


def test_no_gradient_is_computed_where_none_is_asked_for():
    loss = tiled_and_loss(unit_rows(2, 4, 0), unit_rows(9, 4, 1), torch.tensor([[0], [1]]), 0.1)
    assert not loss.requires_grad


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_one_tile_is_held_and_never_two():
    """Peak of a process at N = 2,000,000, B = 64, for a tile of 64 MiB: the plain form needs three of 512 MB."""
    script = """
import torch
from lib.method.tiled_loss import tiled_and_loss

def loss(rows, tile):
    features = torch.nn.functional.normalize(torch.ones(64, 8), dim=1).requires_grad_()
    tiled_and_loss(features, memory[:rows], torch.arange(64)[:, None], 0.1, tile).backward()

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
