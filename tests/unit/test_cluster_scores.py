"""Scores of clusters by hand and by trying every matching."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from lib.evaluation.cluster import SAMPLE, contingency, matched, silhouette
from tests.helpers.rows import unit_rows


def test_accuracy_by_hand():
    table = contingency(np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 1]), 3, 2)
    assert table.tolist() == [[1, 2], [2, 0], [0, 1]]
    accuracy, class_of = matched(table)
    assert accuracy == pytest.approx(4 / 6)  # cluster 0 is class 1, cluster 1 is class 0, cluster 2 is nothing
    assert class_of == {0: 1, 1: 0}


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (5, 3), (3, 5), (1, 4)])
def test_accuracy_is_that_of_the_best_matching(clusters, classes):
    rng = np.random.default_rng(clusters)
    assignments, labels = rng.integers(0, clusters, 60), rng.integers(0, classes, 60)
    best = 0
    wide = max(clusters, classes)
    for order in itertools.permutations(range(wide)):
        best = max(best, sum(order[a] == b for a, b in zip(assignments, labels)))
    assert matched(contingency(assignments, labels, clusters, classes))[0] == pytest.approx(best / 60)


def test_the_silhouette_and_its_sample():
    rows = unit_rows(200, 6, 0)
    assignments = (rows[:, 0] > 0).long().numpy()
    assert silhouette(rows, assignments, 0) == pytest.approx(
        silhouette_score(rows.numpy(), assignments, metric="cosine")
    )
    many = unit_rows(SAMPLE + 500, 6, 1)
    halves = (many[:, 0] > 0).long().numpy()
    whole = silhouette_score(many.numpy(), halves, metric="cosine")
    assert silhouette(many, halves, 0) == pytest.approx(whole, abs=0.02)
    assert silhouette(many, halves, 0) == silhouette(many, halves, 0)


def test_no_silhouette_of_one_cluster_or_of_single_rows():
    rows = unit_rows(5, 3, 0)
    assert silhouette(rows, np.zeros(5, dtype=np.int64), 0) is None
    assert silhouette(rows, torch.arange(5).numpy(), 0) is None
