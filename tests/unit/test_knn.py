"""The weighted kNN classifier and leave-one-out kNN, against independent oracles and by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.image_set import ImageSet
from lib.distributed.world import World
from lib.evaluation.features import Features
from lib.evaluation.knn import Accuracy, LeaveOneOutKNN, log_votes, rank_of_truth, weighted_knn
from tests.helpers import oracles
from tests.helpers.rows import unit_rows


@settings(max_examples=40, deadline=None)
@given(
    q=st.integers(1, 12),
    n=st.integers(1, 40),
    classes=st.integers(1, 9),
    k=st.sampled_from([1, 3, 10, 200]),
    sigma=st.sampled_from([0.07, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_accuracy_matches_the_oracle(q, n, classes, k, sigma, seed):
    rng = np.random.default_rng(seed)
    queries, database = unit_rows(q, 4, seed), unit_rows(n, 4, seed + 1)
    query_labels, labels = rng.integers(0, classes, q), rng.integers(0, classes, n)
    accuracy = weighted_knn(
        queries, torch.from_numpy(query_labels), database, torch.from_numpy(labels), classes, k, sigma
    )
    top1, top5 = oracles.knn_accuracy(
        queries.double().numpy(), query_labels, database.double().numpy(), labels, classes, k, sigma
    )
    assert accuracy.top1 == pytest.approx(top1)
    assert accuracy.top5 == (pytest.approx(top5) if classes >= 5 else None)


def test_votes_by_hand():
    votes = log_votes(torch.tensor([[1.0, 0.9, 0.9]]), torch.tensor([[2, 0, 0]]), 3, 0.1)
    assert votes[0].exp().tolist() == pytest.approx([2 * np.exp(-1), 0.0, 1.0])


def test_many_weak_votes_beat_one_strong_one():
    # three neighbours at cos 0.95 against one at 1.0, sigma 0.1: 3 exp(-0.5) = 1.82 > 1
    votes = log_votes(torch.tensor([[1.0, 0.95, 0.95, 0.95]]), torch.tensor([[0, 1, 1, 1]]), 2, 0.1)
    assert rank_of_truth(votes, torch.tensor([1])).item() == 0
    # at sigma 0.03 the strong one wins: 3 exp(-1.67) = 0.57
    votes = log_votes(torch.tensor([[1.0, 0.95, 0.95, 0.95]]), torch.tensor([[0, 1, 1, 1]]), 2, 0.03)
    assert rank_of_truth(votes, torch.tensor([1])).item() == 1


@pytest.mark.parametrize("sigma", [1e-4, 1e-6, 1e-300])
def test_a_tiny_sigma_neither_overflows_nor_loses_a_vote(sigma):
    """At sigma 1e-4, exp() of a similarity lower by 0.1 is 0; classes still rank by their nearest neighbours."""
    similarities = torch.tensor([[1.0, 0.9, 0.8, 0.7, 0.6, 0.6]], dtype=torch.float64)
    neighbours = torch.tensor([[5, 0, 4, 1, 3, 3]])
    votes = log_votes(similarities, neighbours, 7, sigma)
    assert votes[0, 2] == votes[0, 6] == float("-inf")
    assert [rank_of_truth(votes, torch.tensor([c])).item() for c in (5, 0, 4, 1, 3, 2)] == [0, 1, 2, 3, 4, 7]
    assert votes[0, 3].item() == pytest.approx(-0.4 / sigma + np.log(2))


def test_top5_at_a_tiny_sigma_is_that_of_the_nearest_of_each_class():
    queries, database = unit_rows(200, 4, 1), unit_rows(300, 4, 2)
    truth, labels = torch.arange(200) % 9, torch.arange(300) % 9
    similarity = (queries @ database.t()).double()
    nearest = torch.stack([similarity[:, labels == c].max(dim=1).values for c in range(9)], dim=1)
    expected = (nearest.topk(5, dim=1).indices == truth[:, None]).any(dim=1).double().mean().item()
    found = weighted_knn(queries, truth, database, labels, 9, 300, 1e-5)
    assert found.top5 == pytest.approx(expected, abs=0.011)  # two classes' nearest may differ by less than rounding
    assert expected > 0.4


def test_equal_votes_go_to_the_lower_class():
    votes = torch.tensor([[1.0, 1.0, 0.5]])
    assert [rank_of_truth(votes, torch.tensor([c])).item() for c in range(3)] == [0, 1, 2]


def test_a_class_without_votes_is_never_right():
    votes = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]).log()
    assert rank_of_truth(votes, torch.tensor([1])).item() == 5


def test_one_class():
    ones = torch.zeros(4, dtype=torch.int64)
    result = weighted_knn(unit_rows(4, 3, 0), ones, unit_rows(4, 3, 1), ones, 1, 200, 0.1)
    assert result == Accuracy(1.0, None)


def test_the_nearest_alone_decides_with_k_1():
    database = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.99], [0.2, 0.97]])
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[0.8, 0.6]])
    assert weighted_knn(query, torch.tensor([0]), database, labels, 2, 1, 0.2).top1 == 1.0
    assert weighted_knn(query, torch.tensor([0]), database, labels, 2, 4, 0.2).top1 == 0.0


def test_accuracy_as_text():
    assert str(Accuracy(0.9512, 0.999)) == "top-1 95.12 %, top-5 99.90 %"
    assert str(Accuracy(0.5, None)) == "top-1 50.00 %"


def leave_one_out(labels, classes, k, memory):
    """The results of leave-one-out kNN by their names in metrics.jsonl; None where there are none."""
    images = ImageSet(
        np.zeros((4 if labels is None else len(labels), 4, 4, 3), np.uint8), labels, tuple(map(str, range(classes)))
    )
    pipeline = SimpleNamespace(name="some", train=images, test=None)
    world = World.alone()
    protocol = LeaveOneOutKNN(pipeline, world, "knn", 1, k, 0.1, "auto")
    found = protocol.evaluate(Features(None, pipeline, world, 4, memory))
    return None if found is None else found.scalars


@pytest.mark.parametrize("k", [1, 3, 200])
def test_leave_one_out_matches_the_oracle(k):
    random = np.random.default_rng(k)
    labels = random.integers(-1, 6, 40)
    memory = unit_rows(40, 4, 3)
    known = np.flatnonzero(labels >= 0)
    right = []
    for row in known:
        others = known[known != row]
        ranking = oracles.knn_ranking(
            memory[row].double().numpy(), memory[others].double().numpy(), labels[others], 6, k, 0.1
        )
        right.append([ranking[0] == labels[row], labels[row] in ranking[:5]])
    found = leave_one_out(labels, 6, k, memory)
    assert [found["knn_top1"], found["knn_top5"]] == pytest.approx(np.mean(right, axis=0))


def test_leave_one_out_excludes_the_image_itself():
    memory = torch.eye(4)[[0, 0, 1, 1]]
    assert leave_one_out(np.array([0, 0, 1, 1]), 2, 1, memory)["knn_top1"] == 1.0
    assert leave_one_out(np.array([0, 1, 0, 1]), 2, 1, memory)["knn_top1"] == 0.0


def test_leave_one_out_needs_two_labels():
    assert leave_one_out(None, 0, 1, torch.eye(4)) is None
    assert leave_one_out(np.array([-1, 0, -1, -1]), 2, 1, torch.eye(4)) is None
