"""`--protocol` with several at once, as a user calls it: while training, at the end, on a session, after a kill.

What each protocol computes is tested beside its own oracle: test_linear, test_clustering.
"""

import csv
import errno
import json
import re
import shutil

import numpy as np
import pytest
import torch

from datasets.image_set import UNLABELLED, ImageSet, Split
from datasets.labels import select_classes
from lib.checkpoint import io as checkpoint
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.baselines import PixelNeighbours
from lib.evaluation.evaluator import Evaluator
from main import main
from tests.helpers.processes import run as run_processes
from tests.helpers.runs import TINY, call, error_line, start, wait_for

ALL = ["--protocol", "knn", "nn", "linear", "cluster", "--linear-freq", "2", "--cluster-freq", "1"]
STAGES = ("stem", "layer1", "layer2", "layer3", "fc")
LINEAR = {f"linear_{stage}_{top}" for stage in STAGES for top in ("top1", "top5")}
CLUSTER = {f"cluster_{what}" for what in ("count", "cosine", "silhouette", "accuracy", "nmi", "ari")}


def metrics_of(session):
    return [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]


def figures(record):
    return {key: record.get(key) for key in (*sorted(LINEAR | CLUSTER), "knn_top1", "nn_top1", "nn_top5")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its session, and what it printed."""
    base = tmp_path_factory.mktemp("protocols")
    status, out, err = call(*TINY, *ALL, "--num-clusters", "6", "--sess-dir", base, "--session", "s")
    assert status == 0, err
    return base / "s", out


def test_epochs_have_the_results_of_the_protocols_due(run):
    lines = metrics_of(run[0])
    assert [(line["round"], line["epoch"]) for line in lines] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for line in lines:
        assert line.keys() >= CLUSTER | {"knn_top1", "nn_top1", "nn_top5"}
        assert (line.keys() >= LINEAR) == (line["epoch"] == 2)
        assert all(0 <= line[key] <= 1 for key in line if key.endswith(("top1", "top5", "accuracy")))
        assert line["cluster_count"] == 6


def test_the_end_has_a_table_for_each_protocol(run):
    out = run[1]
    for stage in STAGES:
        assert re.search(rf"^\| {stage} +\|.*%", out, re.M), out
    assert "cluster sizes: " in out
    assert "matched with" in out
    last = metrics_of(run[0])[-1]
    said = re.search(r"cluster 6 clusters, accuracy ([\d.]+) %, NMI ([\d.]+) %", out)
    assert said.groups() == (f"{100 * last['cluster_accuracy']:.2f}", f"{100 * last['cluster_nmi']:.2f}")
    with open(run[0] / "cluster-table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert sum(int(row["size"]) for row in rows) == 40
    assert all(sum(int(row[str(digit)]) for digit in range(10)) == int(row["size"]) for row in rows)


def test_test_only_repeats_the_results_of_the_run(run, tmp_path, capsys):
    session = shutil.copytree(run[0], tmp_path / "s")
    before = (session / "metrics.jsonl").read_bytes()
    protocols = ["--protocol", "knn", "linear", "cluster", "--num-clusters", "6"]
    assert main(["--resume", str(session), "--test-only", *protocols]) == 0
    out = capsys.readouterr().out
    last = metrics_of(session)[-1]
    assert f"cluster 6 clusters, accuracy {100 * last['cluster_accuracy']:.2f} %" in out
    for stage in STAGES:
        row = next(line for line in out.splitlines() if line.startswith(f"| {stage} "))
        assert f"{100 * last[f'linear_{stage}_top1']:.2f} %" in row
    assert (session / "metrics.jsonl").read_bytes() == before


def test_the_number_of_clusters_is_found_and_plotted(run, tmp_path, capsys):
    session = shutil.copytree(run[0], tmp_path / "s")
    assert main(["--resume", str(session), "--test-only", "--protocol", "cluster", "--num-clusters", "auto"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"number of clusters found: \d+, confidence \d\.\d\d: ", out)
    assert (session / "cluster-number.png").read_bytes().startswith(b"\x89PNG")


def test_two_processes_find_what_one_finds(run, tmp_path):
    protocols = ["--protocol", "linear", "cluster", "--num-clusters", "6"]
    out = run_processes(2, ["--resume", run[0], "--test-only", *protocols]).stdout
    last = metrics_of(run[0])[-1]
    assert f"cluster 6 clusters, accuracy {100 * last['cluster_accuracy']:.2f} %" in out
    for stage in STAGES:  # sums in another order: one image of thirty may fall on the other side
        row = next(line for line in out.splitlines() if line.startswith(f"| {stage} "))
        assert abs(float(re.search(r"([\d.]+) %", row)[1]) - 100 * last[f"linear_{stage}_top1"]) < 3.4


def test_evaluations_missed_by_a_kill_are_made_on_resume(run, tmp_path):
    """The run is killed after the epoch is saved and before its slower protocols finish."""
    session = tmp_path / "s"
    process = start(*TINY, *ALL, "--num-clusters", "6", "--sess-dir", tmp_path, "--session", "s")
    wait_for(lambda: (session / "metrics.jsonl").exists() and len(metrics_of(session)) == 2, process)
    last = session / "checkpoint" / "0000-00000.ckpt"
    wait_for(lambda: checkpoint.load(last)["epoch"] == 2, process)
    process.kill()
    process.communicate()
    assert not LINEAR & metrics_of(session)[-1].keys(), "killed too late"
    status, _, err = call("--resume", session)
    assert status == 0, err
    assert [figures(line) for line in metrics_of(session)] == [figures(line) for line in metrics_of(run[0])]


@pytest.mark.parametrize("clusters", ["41", "1000"])
def test_more_clusters_than_images_are_refused(tmp_path, capsys, clusters):
    options = ["--protocol", "cluster", "--num-clusters", clusters, "--sess-dir", str(tmp_path / "new")]
    assert main([*TINY, *options]) == 2
    assert "is more than the 40 training images" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_cluster_scores_ignore_images_without_a_label():
    images = ImageSet(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, UNLABELLED, 2, UNLABELLED, 2]), ("a", "b", "c"))
    split = Split("x", images, None, ("a note",))
    chosen = select_classes(split, ["a", "c"])
    assert chosen.train.labels.tolist() == [0, 1, 1]
    assert chosen.train.numbers.tolist() == [0, 3, 5]
    assert (chosen.train.classes, chosen.notes) == (("a", "c"), ("a note",))


def test_results_are_shown_even_if_their_files_cannot_be_written(run, capsys, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lib.commands.evaluate.write_files", full)
    assert main(["--resume", str(run[0]), "--test-only", "--protocol", "knn"]) == 1
    shown = capsys.readouterr()
    assert "knn" in shown.out
    assert "could not be written: No space left on device" in shown.err


def test_the_others_wait_for_hours_while_the_first_process_evaluates(monkeypatch):
    """Clusters are found by the first process alone."""
    calls = []

    class Waiting(World):
        def long_barrier(self):
            calls.append("wait")

    class Silent:
        def evaluate(self, features):
            calls.append("evaluate")

    monkeypatch.setattr(PixelNeighbours, "measurable", lambda pipeline: False)
    evaluator = Evaluator(Options(dataset="digits", protocol=()), None, Waiting(1, 2, torch.device("cpu")))
    assert evaluator._evaluate([Silent(), Silent()], None) == []
    assert calls == ["evaluate", "wait", "evaluate", "wait"]
