"""Benchmarks at a budget, on digits and with budgets below a second."""

import sys

import pytest
import torch

from benchmarks import contender, readout, rivals, runs
from benchmarks.runs import Cell, Store
from lib.errors import UserError

DIGITS = contender.arguments_of("digits", "quick", None, 0, 1)


@pytest.fixture(scope="module")
def images():
    return readout.Images.of([*DIGITS, "--limit-train", "260"])


def test_accuracy_of_labels_as_features_and_of_noise(images):
    train, test = (torch.nn.functional.one_hot(labels, 10).float() for labels in images.labels)
    found = images.accuracies_of(train, test)
    assert found["plain"] == {"20": 100.0, "200": 100.0}
    assert found["whitened"]["20"] == 100.0
    noise = torch.Generator().manual_seed(0)
    found = images.accuracies_of(torch.randn(260, 4, generator=noise), torch.randn(len(test), 4, generator=noise))
    assert found["plain"]["20"] < 25


def test_pixels_and_the_untrained_network(images):
    pixels, untrained = readout.of_pixels(images)["pixels"], readout.of_untrained(images)
    assert pixels["plain"]["20"] > 85
    assert set(untrained) == {"embedding", "backbone", "first layer"}
    assert untrained["first layer"]["whitened"]["20"] > 85


def test_a_run_of_the_quick_recipe_from_budget_to_table(tmp_path, monkeypatch):
    """As the benchmark does, but in this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cell = Cell("digits", "instance", 0.01, None, 0)
    found = contender.measure(cell, None, 1)
    assert found["rounds"] == found["views_done"] == 1  # one epoch is the least
    assert found["train_seconds"] > 0
    assert set(found["accuracies"]) == {"embedding", "backbone"}
    assert found["accuracies"]["backbone"]["whitened"]["20"] > 90  # pixels: 97
    store = Store(tmp_path / "r.json")
    store.add({**found, "date": "2026-11-25", "machine": "m"})
    assert list(Store(tmp_path / "r.json").results) == [cell]
    assert "| AND, configs/quick.yaml, round 0 alone | 1 |" in runs.report(store, "T")


def test_missing_data_is_an_error(capsys):
    with pytest.raises(UserError, match=r"cifar1000: no such data set; there are cifar, cifar-small, digits, fashion"):
        contender.arguments_of("cifar1000", "quick", None, 0, 1)


def test_without_lightly_one_line_says_what_to_install(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(UserError, match=r"lightly is missing.*pip install -r requirements-rivals.txt"):
        rivals.train("simclr", images, 1, None, 0.06, 0)
    monkeypatch.setattr(sys, "argv", ["rivals", "--scale", "digits", "--seconds", "1"])
    with pytest.raises(SystemExit) as stop:
        runs.exit_with(rivals.main)
    assert stop.value.code == 2


@pytest.mark.parametrize("method", rivals.METHODS)
def test_a_few_steps_of_each_rival(images, method):
    pytest.importorskip("lightly")
    views = 4 if method == "fastsiam" else 2
    found = rivals.train(method, images, None, 3.0, 0.06, 0)
    assert found["steps"] == -(-3 * 260 // (views * 128))  # the first step at which the budget is reached
    assert found["views_done"] == found["steps"] * views * 128 / 260
    assert found["accuracies"]["backbone"]["plain"]["20"] > 50  # chance: 10


def test_a_rival_without_a_budget(images):
    with pytest.raises(UserError, match="--seconds or --views"):
        rivals.train("simclr", images, None, None, 0.06, 0)


def test_averaged_weights_and_the_loss_of_fastsiam_by_hand():
    lightly = pytest.importorskip("lightly") and rivals._lightly()
    byol = rivals.BYOL(lightly, rivals.resnet18(), input_size=8)
    own, average = byol.heads[0], byol.average[1]
    before = [weight.clone() for weight in average.parameters()]
    with torch.no_grad():
        for weight in own.parameters():
            weight += 1
    byol.before_step(0.0)
    for old, new in zip(before, average.parameters()):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * (old + 1))
    byol.before_step(1.0)  # the last step leaves them
    for old, new in zip(before, average.parameters()):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * (old + 1))

    siam, views = rivals.FastSiam(lightly, rivals.resnet18(), input_size=8), [torch.randn(4, 3, 8, 8) for _ in range(4)]
    z = [siam.heads[0](siam.backbone(view)) for view in views]
    p = [siam.heads[1](each) for each in z]
    expected = 0.0
    for i in range(4):
        others = torch.stack([z[j] for j in range(4) if j != i]).mean(dim=0)
        expected -= torch.nn.functional.cosine_similarity(p[i], others).mean() / 4
    torch.testing.assert_close(siam.loss(views), expected)
