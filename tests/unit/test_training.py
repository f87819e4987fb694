"""Learning-rate policies, optimisers, gradient accumulation, and the batches of an epoch."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datasets.pipeline import split_order
from lib.config import Options
from lib.distributed.world import World
from lib.errors import RunError
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.nn.embedder import Embedder
from lib.runtime.stop_signals import StopSignals
from lib.session.metrics import History, Round
from lib.training import stopping
from lib.training.epoch import train_epoch, with_seeded_dropout
from lib.training.optim import build_optimizer, start_schedule
from lib.training.step import Step
from lib.training.stopping import SaveEvery, StopAndSavePolicy
from lib.training.trainer import curriculum_note
from models.shared_dropout import SharedDropout
from tests.helpers import oracles

CPU = torch.device("cpu")


def rates(options, epochs, start=0, round_number=0):
    """The learning rate that each epoch is trained with."""
    optimizer = build_optimizer(options, [nn.Parameter(torch.zeros(1))])
    schedule = start_schedule(options, optimizer, round_number, start)
    found = []
    for _ in range(start, epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_step_policy_of_the_paper_at_its_turning_points():
    found = rates(Options(), 200)
    assert found[0] == found[79] == found[80] == found[119] == pytest.approx(0.03)
    assert found[120] == found[159] == pytest.approx(0.003)
    assert found[160] == found[199] == pytest.approx(0.0003)


def test_the_step_policy_against_its_formula():
    options = replace(Options(), base_lr=0.5, lr_decay_offset=3, lr_decay_step=2, lr_decay_rate=0.7)
    expected = [0.5 * 0.7 ** ((e - 3) // 2) if e >= 3 else 0.5 for e in range(15)]
    assert rates(options, 15) == pytest.approx(expected)


def test_multistep_decays_at_each_epoch_of_the_schedule():
    options = replace(Options(), lr_policy="multistep", base_lr=1.0, lr_schedule=(2, 5), lr_decay_rate=0.1)
    assert rates(options, 7) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_multistep_agrees_with_torchs_own():
    options = replace(Options(), lr_policy="multistep", base_lr=0.4, lr_schedule=(1, 4, 6), lr_decay_rate=0.5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 4, 6], gamma=0.5)
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(options, 9) == pytest.approx(expected)


def test_fixed_stays():
    assert rates(replace(Options(), lr_policy="fixed", base_lr=0.2), 4) == [0.2] * 4


@pytest.mark.parametrize("policy", ["step", "multistep", "cosine", "fixed"])
def test_a_schedule_resumed_midway_continues_unchanged(policy):
    options = replace(Options(), lr_policy=policy, lr_schedule=(2, 5), lr_decay_offset=2, lr_decay_step=2)
    options = replace(options, max_epoch=9, lr_warmup=3)
    whole = rates(options, 9)
    for start in range(9):
        assert rates(options, 9, start) == whole[start:]


def test_cosine_falls_over_the_whole_run():
    """Three rounds of four epochs, by the formula, and by hand in the middle; a run from round 1 has two rounds."""
    options = replace(Options(), lr_policy="cosine", base_lr=0.2, max_round=3, max_epoch=4)
    found = [rate for number in range(3) for rate in rates(options, 4, 0, number)]
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * epoch / 12)) for epoch in range(12)])
    assert found[0] == 0.2
    assert found[6] == pytest.approx(0.1)
    later = replace(options, first_round=1)
    found = [rate for number in (1, 2) for rate in rates(later, 4, 0, number)]
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)])


def test_the_rate_warms_up_at_the_start_of_the_run_alone():
    options = replace(Options(), lr_policy="fixed", base_lr=1.0, lr_warmup=3, max_round=2, max_epoch=2)
    assert rates(options, 2) == pytest.approx([0.25, 0.5])
    assert rates(options, 2, 0, 1) == pytest.approx([0.75, 1.0])
    assert rates(replace(options, lr_warmup=0), 2) == [1.0, 1.0]


def test_the_rate_restarts_in_a_new_round_and_momentum_stays():
    options = replace(Options(), lr_decay_offset=1, lr_decay_step=1)
    weight = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(options, [weight])
    schedule = start_schedule(options, optimizer, 0, 0)
    for _ in range(5):
        weight.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    assert optimizer.param_groups[0]["lr"] < 0.03
    start_schedule(options, optimizer, 1, 0)
    assert optimizer.param_groups[0]["lr"] == 0.03
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)


def test_sgd_with_nesterov_by_hand():
    """g = grad + wd * w; v = mu * v + g; w -= lr * (g + mu * v)."""
    options = replace(Options(), base_lr=0.1, momentum=0.9, weight_decay=0.01)
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer(options, [weight])
    w, v = 2.0, 0.0
    for gradient in (1.0, -0.5, 0.25):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        g = gradient + 0.01 * w
        v = g if v == 0 else 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v)
        assert weight.item() == pytest.approx(w, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop), ("sgd", torch.optim.SGD)]
)
def test_each_optimizer_is_built_with_its_options(name, kind):
    options = replace(Options(), optimizer=name, base_lr=0.02, weight_decay=0.003, momentum=0.8)
    optimizer = build_optimizer(options, [nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.003)
    if name != "adam":
        assert group["momentum"] == 0.8


class Linear(nn.Module):
    """A network without batch norm, for exact comparisons: features are normalised rows of x W."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return F.normalize(images @ self.weight, dim=1)


def run_epoch(sizes, iter_size, data, momentum=0.5, found=None, lr=0.1, unit_bank=False):
    network, bank = Linear(), MemoryBank(len(data), 4, momentum, torch.Generator().manual_seed(1))
    if unit_bank:
        bank.memory.copy_(F.normalize(bank.memory, dim=1))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    indices = torch.arange(sum(sizes)).split(list(sizes))
    found = found or Neighbourhoods.none(len(data), 1, CPU)
    step = Step(Embedder(network, CPU), bank, optimizer, 0.5)
    result = train_epoch(step, found, ((data[i], i) for i in indices), tuple(sizes), iter_size)
    return network, bank, result


def numpy_epoch(sizes, iter_size, data, sets, lr=0.1, tau=0.5, eta=0.5):
    """The same epoch in float64 NumPy: gradients of a group are averaged over its images."""
    network, bank = Linear(), MemoryBank(len(data), 4, eta, torch.Generator().manual_seed(1))
    weight, memory = network.weight.detach().double().numpy().copy(), bank.memory.double().numpy()
    x, start, losses = data.double().numpy(), 0, []
    gradient, count = np.zeros_like(weight), 0
    for number, size in enumerate(sizes):
        rows = range(start, start + size)
        start += size
        raw = x[list(rows)] @ weight
        norm = np.linalg.norm(raw, axis=1, keepdims=True)
        features = raw / norm
        members = [sets[i] for i in rows]
        losses.append(oracles.loss(features, memory, members, tau) * size)
        upstream = oracles.loss_gradient(features, memory, members, tau) * size  # of the sum over the batch
        through_norm = (upstream - features * (upstream * features).sum(1, keepdims=True)) / norm
        gradient += x[list(rows)].T @ through_norm
        count += size
        memory = oracles.bank_update(memory, list(rows), features, eta)
        if (number + 1) % iter_size == 0 or number + 1 == len(sizes):
            weight -= lr * gradient / count
            gradient, count = np.zeros_like(weight), 0
    return weight, memory, sum(losses) / sum(sizes)


@pytest.mark.parametrize(
    ("sizes", "iter_size"),
    [((4, 4, 4), 1), ((4, 4, 1), 1), ((3, 3, 3, 3), 2), ((4, 4, 4, 4, 2), 2), ((5, 5, 3), 4), ((7,), 3), ((1,), 1)],
)
def test_an_epoch_matches_numpy(sizes, iter_size):
    """Accumulation steps after each full group and once for what is left; no batch is dropped."""
    data = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(3))
    k_sets = [[i, (i + 1) % len(data)] if i % 2 and len(data) > 1 else [i] for i in range(len(data))]
    anchors = torch.tensor([i for i, s in enumerate(k_sets) if len(s) > 1], dtype=torch.int64)
    found = Neighbourhoods.of(anchors, ((anchors + 1) % len(data))[:, None], torch.zeros(len(data)), None)
    network, bank, result = run_epoch(sizes, iter_size, data, found=found)
    weight, memory, loss = numpy_epoch(sizes, iter_size, data, k_sets)
    np.testing.assert_allclose(network.weight.detach().numpy(), weight, atol=2e-6)
    np.testing.assert_allclose(bank.memory.numpy(), memory, atol=2e-6)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert result.images == sum(sizes)


def test_a_group_of_small_batches_equals_one_large_batch():
    """With the bank held still (momentum near 1) accumulation changes nothing at all."""
    data = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
    still = 1 - 1e-9
    one, _, _ = run_epoch((12,), 1, data, still, unit_bank=True)
    several, _, _ = run_epoch((5, 5, 2), 3, data, still, unit_bank=True)
    torch.testing.assert_close(one.weight, several.weight, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run():
    data = torch.full((4, 6), float("nan"))
    with pytest.raises(RunError, match="loss is not finite at step 1"):
        run_epoch((4,), 1, data)


def test_progress_is_reported_at_its_steps():
    seen = []
    data = torch.randn(10, 6)
    network, bank = Linear(), MemoryBank(10, 4, 0.5)
    batches = [(data[i : i + 1], torch.tensor([i])) for i in range(10)]
    step = Step(Embedder(network, CPU), bank, torch.optim.SGD(network.parameters(), lr=0.1), 0.5)
    train_epoch(
        step, Neighbourhoods.none(10, 1, CPU), batches, (1,) * 10, report_every=4,
        report=lambda images, loss: seen.append(images),
    )  # fmt: skip
    assert seen == [4, 4, 2]


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 5]), (3, 4, [3]), (1, 4, [1]), (5, 1, [1, 1, 1, 2])],
)
def test_the_last_batch_is_smaller_and_never_a_single_image_after_others(count, batch, expected):
    batches = split_order(torch.randperm(count), batch)
    assert [len(rows) for rows in batches] == expected
    assert sorted(torch.cat(batches).tolist()) == list(range(count))


def test_the_best_epoch_is_the_earliest_of_equals():
    history = History()
    history.start_round(0, 0, None)
    epochs = [
        {"round": 0, "epoch": epoch, "anchors": 0, "consistency": None, "loss": 3.0, "knn_top1": top1, "seconds": 1.0}
        for epoch, top1 in enumerate([0.5, None, 0.7, 0.7, 0.6], 1)
    ]
    improved = [history.current.add(epoch) for epoch in epochs]
    assert improved == [True, False, True, False, False]
    summary = history.current
    assert (summary.knn_last, summary.knn_best, summary.best_epoch, summary.seconds) == (0.6, 0.7, 3, 5.0)
    assert [Round(**asdict(entry)) for entry in history.rounds] == History.of(epochs).rounds == history.rounds


@pytest.mark.parametrize(
    ("rounds", "rate", "words"),
    [
        (5, 0.25, None),
        (5, 0.3, None),
        (7, 0.25, "rounds 4 to 6 take all images as anchors (--ANs-select-rate 0.25); --ANs-select-rate auto would be "
                  "1/6, so that only the last round does, as in the paper"),
        (4, 0.5, "rounds 2 to 3 take all images as anchors (--ANs-select-rate 0.5); --ANs-select-rate auto would be "
                 "1/3, so that only the last round does, as in the paper"),
        (7, "auto", None),
        (2, 1.0, None),
        (1, 0.25, None),
    ],
)  # fmt: skip
def test_rounds_that_repeat_all_anchors_are_named(rounds, rate, words):
    assert curriculum_note(Options(max_round=rounds, ANs_select_rate=rate)) == words


def test_dropout_masks_depend_only_on_the_position_in_the_run():
    layer = SharedDropout(0.5)

    def drawn(start, *place, world=None, size=8):
        """(steps, rows, 64) of this process, for batches of `size`."""
        torch.rand(start + 3)  # whatever was drawn before
        world = World.alone() if world is None else world
        own = world.rows(size)
        batches = iter([(torch.ones(own.stop - own.start, 64), torch.arange(1))] * (4 - start))
        shown = with_seeded_dropout(batches, nn.Sequential(layer), world, [size] * 4, start, 7, *place)
        return torch.stack([layer(images) for images, _ in shown])

    masks = drawn(0, 2, 3)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert masks.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(drawn(0, 2, 3), masks)
    assert torch.equal(drawn(2, 2, 3), masks[2:])  # gone on with within the epoch
    assert len(torch.cat([masks, drawn(0, 3, 3), drawn(0, 2, 4)]).flatten(0, 1).unique(dim=0)) == 3 * 4 * 8
    for size in (2, 3, 8):
        parts = [drawn(0, 2, 3, world=World(rank, size, torch.device("cpu"))) for rank in range(size)]
        assert torch.equal(torch.cat(parts, dim=1), masks)
    few = [drawn(0, 2, 3, world=World(rank, 3, torch.device("cpu")), size=2) for rank in range(3)]
    assert torch.equal(torch.cat(few, dim=1), drawn(0, 2, 3, size=2))


def test_shared_dropout_is_dropout_otherwise():
    rows = torch.ones(4, 100)
    torch.manual_seed(0)
    expected = nn.Dropout(0.5)(rows)
    layer = SharedDropout(0.5)
    torch.manual_seed(0)
    assert torch.equal(layer(rows), expected)
    layer.set_rows(0, 4)
    assert torch.equal(layer.eval()(rows), rows)
    leaf = rows.bfloat16().requires_grad_()
    result = layer.train()(leaf)
    result.sum().backward()
    assert result.dtype == torch.bfloat16
    assert torch.equal(leaf.grad, result)


class OneStepLater:
    """A consensus of several processes: a request of one step is known at the next."""

    def __init__(self, world):
        self.sent = 0

    def at_step(self, request):
        agreed, self.sent = self.sent, request
        return agreed


def test_several_processes_save_once_when_it_is_time(monkeypatch):
    monkeypatch.setattr(stopping, "Consensus", OneStepLater)
    saves, now = [], [0.0]

    def save(progress, signal_number):
        saves.append(progress)

    world = World(0, 2, torch.device("cpu"))
    policy = StopAndSavePolicy(SaveEvery(seconds=10), StopSignals(), world, save, clock=lambda: now[0])
    for step in range(1, 40):
        now[0] += 1.0
        policy.between_steps(step, lambda step=step: step)
    assert saves == [11, 22, 33]
