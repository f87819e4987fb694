"""Linear classifiers against scikit-learn's, and the activations they are trained on."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import models
from lib.distributed.world import World
from lib.errors import RunError
from lib.evaluation import linear
from lib.evaluation.knn import classes_ahead
from lib.evaluation.linear import _moments, fit_classifier, pooled, pooled_widths, stage_rows
from lib.nn.embedder import Embedder

ALONE = World.alone()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    rows = torch.from_numpy(images).float()[:700]
    mean, deviation = _moments(rows, ALONE)
    return (rows - mean) / deviation, torch.from_numpy(labels)[:700]


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-3])
def test_the_classifier_minimises_scikit_learns_objective(digits, penalty):
    rows, labels = digits
    ours = fit_classifier(rows, labels, 10, penalty, ALONE, steps=1000)
    theirs = LogisticRegression(C=1 / (len(rows) * penalty), max_iter=5000, tol=1e-8).fit(rows.numpy(), labels.numpy())
    # a shift common to all classes changes no probability; both have none in the weights
    weights, bias = ours.weights.T, ours.bias - ours.bias.mean()
    assert np.abs(weights - theirs.coef_).max() < 0.01 * np.abs(theirs.coef_).max()
    assert np.abs(bias - (theirs.intercept_ - theirs.intercept_.mean())).max() < 0.02
    shares = torch.softmax(ours.scores(rows, ALONE.device), dim=1).numpy()
    assert np.abs(shares - theirs.predict_proba(rows.numpy())).max() < 5e-3


def test_the_objective_in_float64(digits):
    rows, labels = digits
    found = fit_classifier(rows, labels, 10, 0.1, ALONE, steps=3)
    scores = rows.double().numpy() @ found.weights + found.bias
    entropy = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(700), labels.numpy()]
    assert found.objective == pytest.approx(entropy.mean() + 0.05 * (found.weights**2).sum(), rel=1e-6)
    assert found.steps <= 3


def test_excluded_rows_change_nothing(digits, monkeypatch):
    rows, labels = digits
    included = torch.arange(700) % 3 > 0
    monkeypatch.setattr("lib.evaluation.linear.BLOCK_ELEMENTS", 64 * 100)  # seven blocks
    some = fit_classifier(rows, labels, 10, 0.1, ALONE, steps=200, included=included)
    alone = fit_classifier(rows[included], labels[included], 10, 0.1, ALONE, steps=200)
    assert np.abs(some.weights - alone.weights).max() < 2e-3


def test_a_warm_start_ends_where_a_cold_one_does(digits):
    rows, labels = digits
    warm = fit_classifier(rows, labels, 10, 0.1, ALONE, start=fit_classifier(rows, labels, 10, 1.0, ALONE), steps=500)
    assert warm.objective == pytest.approx(fit_classifier(rows, labels, 10, 0.1, ALONE, steps=500).objective, rel=1e-4)


def test_a_single_class_and_a_value_that_never_varies():
    rows = torch.full((6, 2), 3.0)
    mean, deviation = _moments(rows, ALONE)
    assert mean.tolist() == [3.0, 3.0]
    assert deviation.tolist() == [1.0, 1.0]
    found = fit_classifier(rows - mean, torch.zeros(6, dtype=torch.int64), 1, 0.1, ALONE)
    assert classes_ahead(found.scores(rows, ALONE.device), torch.zeros(6, dtype=torch.int64)).sum() == 0


def test_equal_scores_go_to_the_lower_class():
    scores = torch.tensor([[0.0, 0.0, -1.0]])
    assert [classes_ahead(scores, torch.tensor([c])).item() for c in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((64, 32, 32), 12),
        ((512, 4, 4), 4),
        ((96, 55, 55), 10),
        ((2048, 7, 7), 2),
        ((12000, 3, 3), 1),
        ((64, 5, 20), None),
    ],
)
def test_pooling_keeps_at_most_ten_thousand_values(shape, side):
    maps = torch.rand(2, *shape)
    rows = pooled(maps, 10_000)
    if side is None:
        assert rows.shape == (2, 64 * 5 * 12)
        return
    assert rows.shape == (2, shape[0] * side * side)
    assert side == 1 or rows.shape[1] <= 10_000
    # whatever is kept, the mean of each half-overlapping window lies between the extremes, and 1 x 1 is the mean
    assert torch.allclose(pooled(maps, shape[0])[0], maps[0].mean(dim=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "size", "widths"),
    [
        ("resnet18", 16, {"stem": 9216, "layer1": 9216, "layer2": 8192, "layer3": 4096, "layer4": 2048, "fc": 32}),
        ("alexnet", 16, {"conv1": 9600, "conv2": 9216, "conv3": 6144, "conv4": 6144, "conv5": 4096, "fc": 32}),
        ("convnet", 16, {"stem": 8192, "layer1": 8192, "layer2": 4096, "layer3": 2048, "fc": 32}),
    ],
)
def test_the_activations_of_every_stage(network, size, widths):
    torch.manual_seed(0)
    embedder = Embedder(models.build(network, 32, "auto", size), torch.device("cpu"))
    images = torch.rand(5, 3, size, size)
    outputs = embedder.eval_stages()
    found = pooled_widths(outputs, images[:1], 10_000)
    assert found == widths
    assert all(width <= 10_000 for width in found.values())
    assert list(found) == list(widths)
    batches = [(images[[3, 1]], torch.tensor([13, 11])), (images[[0, 2, 4]], torch.tensor([10, 12, 14]))]
    stages = [next(iter(widths)), "fc"]
    kept = stage_rows(outputs, batches, slice(10, 15), found, stages, 10_000, torch.device("cpu"))
    assert list(kept) == stages
    assert torch.allclose(kept["fc"], embedder.eval_copy()(images).detach(), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(kept[stages[0]], pooled(outputs(images)[stages[0]], 10_000), atol=1e-5)
    assert not embedder.network.training


def test_activations_of_every_process_of_a_machine_count(monkeypatch):
    monkeypatch.setattr(linear, "physical_memory", lambda: 1000)
    linear._check_memory(300, ["layer1"], "train")
    for name, value in (("RANK", 0), ("WORLD_SIZE", 8), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RunError, match="layer1 of the train images would take"):
        linear._check_memory(300, ["layer1"], "train")
