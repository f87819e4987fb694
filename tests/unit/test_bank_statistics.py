"""What is seen without labels, and leave-one-out kNN, against oracles and by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.image_set import ImageSet
from lib.clustering.clusters import round_clusters
from lib.distributed.world import World
from lib.evaluation.bank_statistics import BankStatistics, bank_statistics, effective_rank
from lib.evaluation.features import Features
from lib.evaluation.knn import LeaveOneOutKNN
from lib.figures import thumbnails as figures
from lib.figures.thumbnails import NEUTRAL, OTHER, SAME, anchor_grids, thumbnails
from lib.logger.console import _fitted
from lib.logger.tensorboard import SIDE, Projector
from lib.method.discovery import consistency
from lib.method.neighbourhoods import Neighbourhoods
from lib.search.exact import sample_rows
from lib.session.metrics import History, sizes
from tests.helpers import oracles
from tests.helpers.rows import unit_rows


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), largest=st.integers(1, 50), tau=st.sampled_from([0.07, 0.1, 1.0]), seed=st.integers(0, 99))
def test_a_survey_matches_the_oracle(n, largest, tau, seed):
    memory = unit_rows(n, 5, seed)
    rows = sample_rows(n, largest)
    found = bank_statistics(memory, rows, tau)
    exact = memory.double().numpy()
    assert found.entropy.numpy() == pytest.approx(oracles.entropies(exact, tau)[rows.numpy()], abs=2e-6)
    assert found.nearest.tolist() == [oracles.neighbours(exact, row, 1)[0] for row in rows.tolist()]
    cosines = [exact[row] @ exact[near] for row, near in zip(rows.tolist(), found.nearest.tolist())]
    assert found.cosine.numpy() == pytest.approx(cosines, abs=1e-6)
    assert torch.equal(found.features, memory[rows])


def test_of_equal_neighbours_the_first_is_the_nearest():
    memory = unit_rows(1, 8, 0).repeat(30, 1)
    assert bank_statistics(memory, torch.arange(30), 0.1).nearest.tolist() == [1] + [0] * 29


def test_an_sample_rows():
    assert sample_rows(10, 4).tolist() == [0, 2, 5, 7]
    assert sample_rows(3, 4).tolist() == [0, 1, 2]
    assert len(sample_rows(1_281_167)) == 5000


@pytest.mark.parametrize("count", [300, 24, 7])
def test_the_effective_rank_is_that_of_the_singular_values(count):
    rows = unit_rows(count, 24, 3) * torch.logspace(-3, 0, 24) + 0.1
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    p = values / values.sum() + 1e-7
    assert effective_rank(rows, World.alone()) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_the_effective_rank_by_hand():
    assert effective_rank(torch.eye(6), World.alone()) == pytest.approx(6, abs=1e-4)
    assert effective_rank(unit_rows(1, 6, 0).repeat(9, 1), World.alone()) == pytest.approx(1, abs=1e-4)
    two = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # p = 3/4, 1/4
    expected = (4 / 3) ** 0.75 * 4**0.25
    assert effective_rank(two, World.alone()) == pytest.approx(expected, abs=1e-4)


def a_survey(nearest):
    count = len(nearest)
    empty = torch.zeros(count)
    return BankStatistics(torch.arange(count), empty, torch.tensor(nearest), empty, torch.zeros(count, 2))


def test_how_many_kept_their_neighbour():
    assert a_survey([1, 0, 3, 2]).kept(torch.tensor([1, 2, 3, 0])) == 0.5
    assert a_survey([1, 0]).kept(None) is None
    assert a_survey([1, 0]).kept(torch.tensor([1, 0, 0])) is None


def test_pairs_of_unknown_labels_do_not_count():
    labels = torch.tensor([0, 0, 1, -1, -1])
    assert consistency(torch.tensor([0, 1, 3, 2]), torch.tensor([[1], [2], [4], [3]]), labels) == 0.5
    assert consistency(torch.tensor([3, 0]), torch.tensor([[4], [3]]), labels) is None
    assert consistency(torch.tensor([], dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64), labels) is None


def judged(labels, classes, k, memory):
    """What leave-one-out finds, by their names in metrics.jsonl; None if it cannot."""
    images = ImageSet(
        np.zeros((4 if labels is None else len(labels), 4, 4, 3), np.uint8), labels, tuple(map(str, range(classes)))
    )
    pipeline = SimpleNamespace(name="some", train=images, test=None)
    world = World.alone()
    judge = LeaveOneOutKNN(pipeline, world, "knn", 1, k, 0.1, "auto")
    found = judge.evaluate(Features(None, pipeline, world, 4, memory))
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
    found = judged(labels, 6, k, memory)
    assert [found["knn_top1"], found["knn_top5"]] == pytest.approx(np.mean(right, axis=0))


def test_an_image_has_no_vote_on_itself():
    memory = torch.eye(4)[[0, 0, 1, 1]]
    assert judged(np.array([0, 0, 1, 1]), 2, 1, memory)["knn_top1"] == 1.0
    assert judged(np.array([0, 1, 0, 1]), 2, 1, memory)["knn_top1"] == 0.0


def test_without_two_labels_nobody_is_judged():
    assert judged(None, 0, 1, torch.eye(4)) is None
    assert judged(np.array([-1, 0, -1, -1]), 2, 1, torch.eye(4)) is None


def test_clusters_that_are_there_are_found():
    centres = torch.eye(8)[:3]
    rows = torch.nn.functional.normalize(centres.repeat_interleave(torch.tensor([40, 30, 20]), 0), dim=1)
    rows = torch.nn.functional.normalize(rows + 0.05 * unit_rows(90, 8, 0), dim=1)
    assert round_clusters(rows, 90, "auto", 0).sizes(rows) == [40, 30, 20]
    assert round_clusters(rows, 90, "2", 0).sizes(rows) == [50, 40]
    assert round_clusters(rows[:5], 5, "auto", 0) is None
    assert round_clusters(rows, 1_000, "2", 0) is None  # 90 of 1,000 images are a small sample for two clusters


def colours(count):
    """Images of one colour each, which is 10 times their number in red."""
    pixels = np.zeros((count, 12, 10, 3), np.uint8)
    pixels[..., 0] = 10 * np.arange(count)[:, None, None]
    return ImageSet(pixels)


def test_thumbnails_are_the_images_asked_for():
    squares = thumbnails(colours(6), [4, 0, 4], 20)
    assert squares.shape == (3, 20, 20, 3)
    assert squares[:, 10, 10, 0].tolist() == [40, 0, 40]


def test_the_pictures_show_the_right_anchors_in_the_right_frames(monkeypatch):
    images, labels = colours(20), torch.tensor([0, 1] * 9 + [-1, 0])
    anchors = torch.arange(12)
    neighbours = torch.stack([(anchors + 2) % 20, (anchors + 1) % 20], dim=1)
    neighbours[0, 0] = 18
    found = Neighbourhoods.of(anchors, neighbours, torch.linspace(0, 3, 20), None)
    drawn = []
    monkeypatch.setattr(figures, "_draw", lambda squares, frames, caption: drawn.append((squares, frames, caption)))
    grids = anchor_grids(found, images, labels, 6)
    assert [grid.part for grid in grids] == ["lowest", "middle", "highest"]
    shown = [squares[:, :, 30, 30, 0] // 10 for squares, _, _ in drawn]
    assert [part.tolist() for part in shown] == [
        [[0, 18, 1], [1, 3, 2]], [[5, 7, 6], [6, 8, 7]], [[10, 12, 11], [11, 13, 12]],
    ]  # fmt: skip
    assert drawn[0][1] == [[NEUTRAL, NEUTRAL, OTHER], [NEUTRAL, SAME, OTHER]]
    assert drawn[0][2].startswith("entropy 0.000 to 0.158")
    anchor_grids(found, images, None, 6)
    assert all(colour == NEUTRAL for _, frames, _ in drawn[3:] for row in frames for colour in row)
    assert anchor_grids(Neighbourhoods.none(20, 1, torch.device("cpu")), images, None, 6) == []


def test_a_picture_has_a_frame_for_each_image():
    found = Neighbourhoods.of(torch.arange(3), torch.tensor([[1], [2], [0]]), torch.linspace(0, 3, 20), None)
    picture = anchor_grids(found, colours(20), torch.tensor([0, 0, 1] + [0] * 17), 3)[0].picture
    assert picture.dtype == np.uint8
    assert (picture == SAME).all(axis=2).sum() > 4 * figures.SIDE
    assert not (picture == OTHER).all(axis=2).any()


def test_a_projector_takes_any_file_name(tmp_path):
    projector = Projector(tmp_path, np.zeros((3, SIDE, SIDE, 3), np.uint8))
    projector.add("after-round-0", np.eye(3), {"image": ["a\tb", "c\nd", 'e"f'], "cluster": ["0", "1", "2"]})
    lines = (tmp_path / "projector" / "after-round-0-about.tsv").read_text().splitlines()
    assert lines == ["image\tcluster", "a b\t0", "c d\t1", 'e"f\t2']
    projector.add("after-round-0", np.zeros((3, 3)), {"image": ["x", "y", "z"]})
    assert (tmp_path / "projector" / "after-round-0-about.tsv").read_text() == "x\ny\nz\n"
    assert (tmp_path / "projector_config.pbtxt").read_text().count("embeddings {") == 1


def test_cluster_sizes_in_words():
    assert sizes([40, 30, 20]) == "3 (20 to 40)"
    assert sizes([90]) == "1 (all 90)"


def test_tables_fit_a_narrow_terminal():
    history = History()
    history.start_round(0, 0, None)
    found = {"entropy": 2.0, "neighbour_cosine": 0.9, "clusters": [9, 3]}
    history.current.add({"loss": 1.5, "knn_top1": None, "seconds": 1.0, **found})
    for width in (40, 60, 80, 120):
        assert max(map(len, history.unlabelled_table(width).splitlines())) <= max(width, 40)
        assert max(map(len, history.table({}, width).splitlines())) <= max(width, 40)
    assert "| round | anchors |  loss | entropy | anchors' |" in history.unlabelled_table()


def test_long_lines_are_broken_on_terminals_only(monkeypatch):
    text = "options   " + ", ".join(f"name_{number}=value" for number in range(9))
    assert _fitted(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    lines = _fitted(text).split("\n")
    assert max(map(len, lines)) <= 50
    assert all(line.startswith(" " * 10 + "name_") for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == " ".join(text.split()).replace("options ", "options   ")
    command = "command   python3 main.py " + "--cfgs configs/base.yaml " * 4
    assert _fitted(command) == command
