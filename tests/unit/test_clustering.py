"""Spherical k-means, the number of clusters, and their scores: by hand, by brute force, and on known groups."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch.nn import functional as F

from lib.clustering.clusters import choose_number, merge_linkages, neighbour_graph, round_clusters
from lib.clustering.kmeans import spherical_kmeans
from lib.evaluation.cluster import SILHOUETTE_ROWS, contingency, matched, plot_number, silhouette
from tests.helpers.rows import unit_rows


def blobs(sizes, noise=0.08, dim=48, seed=0):
    """Unit rows around random directions, shuffled, and the number of the direction of each."""
    source = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(len(sizes), dim, generator=source), dim=1)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=source)]
    noisy = centres[labels] + noise * torch.randn(len(labels), dim, generator=source)
    return F.normalize(noisy, dim=1), labels


def test_k_means_finds_the_best_division_of_a_few_rows():
    rows = unit_rows(9, 3, 5)
    best = -1.0
    for division in itertools.product(range(3), repeat=9):
        division = torch.tensor(division)
        # the mean direction is the best centre: the sum of cosines with it is the length of the sum
        best = max(best, sum(rows[division == c].double().sum(0).norm().item() for c in range(3)) / 9)
    found = spherical_kmeans(rows, 3, restarts=30)
    assert found.objective == pytest.approx(best, abs=1e-5)


def test_clusters_are_numbered_by_size_and_rows_go_to_their_nearest_centre():
    rows, labels = blobs([20, 90, 50])
    found = spherical_kmeans(rows, 3)
    assert found.sizes.tolist() == [90, 50, 20]
    assert found.assignments.dtype == found.sizes.dtype == torch.int64
    assert [labels[found.assignments == c].unique().tolist() for c in range(3)] == [[1], [2], [0]]
    assert torch.equal(found.assignments, (rows @ found.centres.t()).argmax(dim=1))
    assert torch.allclose(found.centres.norm(dim=1), torch.ones(3), atol=1e-5)
    assert found.objective == pytest.approx(
        (rows * found.centres[found.assignments]).sum(dim=1).mean().item(), abs=1e-6
    )


def test_k_means_is_a_function_of_the_seed():
    rows = unit_rows(300, 16, 1)
    first, second, other = (spherical_kmeans(rows, 12, seed) for seed in (7, 7, 8))
    assert torch.equal(first.assignments, second.assignments)
    assert torch.equal(first.centres, second.centres)
    assert not torch.equal(first.assignments, other.assignments)


def test_as_many_clusters_as_rows_and_more_than_distinct_rows():
    rows = unit_rows(7, 5, 2)
    assert spherical_kmeans(rows, 7).sizes.tolist() == [1] * 7
    assert spherical_kmeans(rows, 1).sizes.tolist() == [7]
    assert spherical_kmeans(rows[:2].repeat(5, 1), 4).sizes.tolist() == [5, 5, 0, 0]
    for clusters in (0, 8):
        with pytest.raises(ValueError, match="clusters exceed the 7 rows"):
            spherical_kmeans(rows, clusters)


def test_the_neighbour_graph_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.25, 1.0])  # nearest: 1, 0, 1, 2
    graph = neighbour_graph(torch.stack([angles.cos(), angles.sin()], dim=1), 1).toarray()
    assert graph.tolist() == [[0, 1, 0, 0], [1, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0, 0, 0.5, 0]]


def test_linkages_against_a_plain_version():
    rows, _ = blobs([30, 20, 10], noise=0.3)
    groups = spherical_kmeans(rows, 12).assignments.numpy()
    graph = neighbour_graph(rows, 5)
    dense, parts, expected = graph.toarray(), [np.flatnonzero(groups == group) for group in range(12)], []
    while len(parts) > 1:
        edges = [dense[part].sum() for part in parts]
        mean_size = len(rows) / len(parts)
        pairs = {}
        for one, other in itertools.combinations(range(len(parts)), 2):
            linkage = dense[np.ix_(parts[one], parts[other])].sum() * np.mean(edges) / (edges[one] * edges[other])
            smaller = min(len(parts[one]), len(parts[other]))
            pairs[one, other] = linkage / min(1.0, smaller / mean_size)
        one, other = max(pairs, key=pairs.get)
        expected.insert(0, pairs[one, other])
        parts[one] = np.concatenate([parts[one], parts.pop(other)])
    assert merge_linkages(graph, groups) == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [[60, 60], [200, 20, 60, 110], [40] * 7, [300, 150, 80, 50, 40, 30, 30, 30, 30]])
def test_the_number_of_clear_groups_is_found(sizes):
    found = choose_number(blobs(sizes)[0])
    assert found.clusters == len(sizes)
    assert found.confidence > 0.9
    assert len(found.candidates) == len(found.criterion)
    assert found.candidates[0] == 2
    below = [k for k, value in zip(found.candidates, found.criterion) if value < found.threshold]
    assert max(below) == len(sizes)


@pytest.mark.parametrize(("count", "dim"), [(400, 8), (400, 64), (1500, 128)])
def test_rows_without_groups_are_one_cluster(count, dim):
    assert choose_number(unit_rows(count, dim, 3)).clusters == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_few_images(count):
    found = choose_number(unit_rows(count, 4, 0))
    assert found.clusters == 1
    assert 0 <= found.confidence <= 1


def test_overlapping_groups_are_less_certain():
    clear, vague = (choose_number(blobs([80] * 6, noise)[0]) for noise in (0.08, 0.26))
    assert vague.confidence < clear.confidence == 1.0
    assert clear.explanation == "100 % of 55 checks give 6"
    assert "others" in vague.explanation


def test_the_number_is_a_function_of_the_seed():
    rows, _ = blobs([80] * 5, 0.22)
    assert choose_number(rows, 4) == choose_number(rows, 4)


def test_samples_of_many_rows(monkeypatch):
    monkeypatch.setattr("lib.clustering.clusters.ROWS_IN_RUN", 500)
    assert choose_number(blobs([400, 300, 300])[0]).clusters == 3


def test_the_plot_of_the_number_is_a_png(tmp_path):
    from PIL import Image

    path = plot_number(choose_number(blobs([40] * 3)[0]), tmp_path / "number.png")
    with Image.open(path) as image:
        assert image.size == (960, 540)
    plot_number(choose_number(unit_rows(1, 4, 0)), tmp_path / "one.png")  # nothing to draw, and no error


def test_cluster_accuracy_by_hand():
    table = contingency(np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 1]), 3, 2)
    assert table.tolist() == [[1, 2], [2, 0], [0, 1]]
    accuracy, class_of = matched(table)
    assert accuracy == pytest.approx(4 / 6)  # cluster 0 is class 1, cluster 1 is class 0, cluster 2 is nothing
    assert class_of == {0: 1, 1: 0}


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (5, 3), (3, 5), (1, 4)])
def test_cluster_accuracy_is_that_of_the_best_matching(clusters, classes):
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
    many = unit_rows(SILHOUETTE_ROWS + 500, 6, 1)
    halves = (many[:, 0] > 0).long().numpy()
    whole = silhouette_score(many.numpy(), halves, metric="cosine")
    assert silhouette(many, halves, 0) == pytest.approx(whole, abs=0.02)
    assert silhouette(many, halves, 0) == silhouette(many, halves, 0)


def test_no_silhouette_of_one_cluster_or_of_single_rows():
    rows = unit_rows(5, 3, 0)
    assert silhouette(rows, np.zeros(5, dtype=np.int64), 0) is None
    assert silhouette(rows, torch.arange(5).numpy(), 0) is None


def test_round_clusters_finds_separated_groups():
    centres = torch.eye(8)[:3]
    rows = torch.nn.functional.normalize(centres.repeat_interleave(torch.tensor([40, 30, 20]), 0), dim=1)
    rows = torch.nn.functional.normalize(rows + 0.05 * unit_rows(90, 8, 0), dim=1)
    assert round_clusters(rows, 90, "auto", 0).sizes(rows) == [40, 30, 20]
    assert round_clusters(rows, 90, "2", 0).sizes(rows) == [50, 40]
    assert round_clusters(rows[:5], 5, "auto", 0) is None
    assert round_clusters(rows, 1_000, "2", 0) is None  # 90 of 1,000 images are a small sample for two clusters
