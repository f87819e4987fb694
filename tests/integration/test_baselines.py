"""The baselines that a run reports and stores: pixels and the untrained network."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from datasets.sources.digits import digits
from lib.evaluation.baselines import below_pixels, shared_neighbours
from lib.evaluation.features import SHRINK
from main import main
from tests.helpers.runs import TINY

RUN = [*TINY, "--network", "convnet", "--max-round", "1", "--max-epoch", "1", "--no-report", "--knn-k", "5"]
RUN += ["--limit-train", "1437", "--limit-test", "360", "--batch-size", "64", "--no-brief", "--knn-sigma", "0.1"]


def vote(train, labels, test, k, sigma):
    """Classes by the weighted vote, in float64."""
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    cosines = test @ train.T
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    votes = np.zeros((len(test), 10))
    for query, rows in enumerate(nearest):
        for row in rows:
            votes[query, labels[row]] += np.exp(cosines[query, row] / sigma)
    return votes.argmax(axis=1)


def test_pixel_baselines_match_an_independent_knn(tmp_path, capsys):
    assert main([*RUN, "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    found = json.loads((tmp_path / "s" / "final.json").read_text())["baselines"]
    assert list(found) == ["pixels", "whitened pixels", "untrained network"]
    split = digits(None, False)
    train, test = (
        np.stack([np.asarray(part.read(i)) for i in range(len(part))]).reshape(len(part), -1) / 255.0
        for part in (split.train, split.test)
    )
    mean = train.mean(axis=0)
    _, values, directions = np.linalg.svd(train - mean, full_matrices=False)
    whitened = [(rows - mean) @ directions.T / (values + SHRINK * values.max()) @ directions for rows in (train, test)]
    for name, rows in (("pixels", (train - mean, test - mean)), ("whitened pixels", whitened)):
        answers = vote(rows[0], split.train.labels, rows[1], 5, 0.1)
        assert found[name] == pytest.approx((answers == split.test.labels).mean(), abs=1.5 / 360)
    assert 0.3 < found["untrained network"] < 1
    out = capsys.readouterr().out
    assert f"baselines kNN of pixels {100 * found['pixels']:.2f} %, whitened pixels" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:5]] == ["pixels", "whitened pixels", "untrained network", "0"]
    assert rows[1][3] == f"{100 * found['pixels']:.2f} %"
    # one epoch is too little to beat pixels here, and the run says so
    assert "are worse than " in out.splitlines()[-2] + out.splitlines()[-3]

    # a resumed run keeps what was found before the first step
    assert main(["--resume", str(tmp_path / "s"), "--max-round", "2"]) == 0
    assert json.loads((tmp_path / "s" / "final.json").read_text())["baselines"] == found


def test_the_note_on_features_worse_than_pixels():
    found = {"pixels": 0.4, "whitened pixels": 0.5, "untrained network": 0.9}
    assert below_pixels(0.5, found) is None
    assert below_pixels(0.1, {}) is None
    said = below_pixels(0.45, found)
    assert said.startswith("the network's features (45.00 %) are worse than whitened pixels (50.00 %)")
    assert "than pixels (60.00 %)" in below_pixels(0.45, {"pixels": 0.6, "whitened pixels": 0.5})


@pytest.mark.parametrize("way", [(), ("--augment-on", "workers", "--workers-num", "0")])
def test_initial_features_are_computed_once_for_bank_and_baselines(way, tmp_path, monkeypatch):
    passes, plain = [], Pipeline.train_batches_plain

    def counted(self):
        passes.append(len(self.train))
        return plain(self)

    monkeypatch.setattr(Pipeline, "train_batches_plain", counted)
    short = [*RUN, *way, "--limit-train", "200", "--limit-test", "100", "--sess-dir", str(tmp_path)]
    found = {}
    for name in ("features", "random"):
        passes.clear()
        assert main([*short, "--session", name, "--bank-init", name]) == 0
        assert len(passes) == 2  # before the first step and after the last
        found[name] = json.loads((tmp_path / name / "final.json").read_text())["baselines"]
    for name in ("pixels", "whitened pixels"):
        assert found["features"][name] == found["random"][name]


def test_shares_of_neighbours_that_pixels_find_too():
    # on a circle; nearest by features: 1, 0, 1, 2; the two nearest by pixels: 1 2, 2 0, 1 0, 2 1
    features, pixels = (
        torch.tensor([[np.cos(angle), np.sin(angle)] for angle in angles]).float()
        for angles in ((0.0, 0.1, 0.3, 0.6), (0.0, 0.4, 0.5, 0.95))
    )
    assert shared_neighbours(features, pixels, 1) == (0.75, 0.75)
    assert shared_neighbours(features, pixels, 2) == (0.75, 1.0)
    assert shared_neighbours(features, pixels, 10) == (0.75, 1.0)  # there are only three others
    assert shared_neighbours(pixels, pixels, 1) == (1.0, 1.0)


def test_without_labels_run_report_and_export_tell_how_far_neighbours_are_those_of_pixels(tmp_path, capsys):
    """By NumPy and the exported features; the pictures have the network's size."""
    rng, count = np.random.default_rng(0), 40
    pixels = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{number:02}.png")
    run = ["--dataset", "photos", "--data-root", str(tmp_path), "--network", "convnet", "--size", "8"]
    run += ["--max-round", "1", "--max-epoch", "2", "--batch-size", "8", "--workers-num", "0", "--low-dim", "16"]
    run += ["--gpus", "cpu", "--precision", "fp32", "--no-log-tfb", "--brief", "--sess-dir", str(tmp_path / "s")]
    run += ["--session", "s", "--means", "0", "0", "0", "--stds", "1", "1", "1"]
    assert main(run) == 0
    said = capsys.readouterr().out
    assert main(["--resume", str(tmp_path / "s" / "s"), "--export", str(tmp_path / "e"), "--neighbours", "1"]) == 0
    exported = capsys.readouterr().out
    by_features = np.load(tmp_path / "e" / "neighbours.npy")[:, 0]
    rows = (pixels / 255.0).transpose(0, 3, 1, 2).reshape(count, -1)
    centred = rows - rows.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    whitened = centred @ directions.T / (values / values.max() + SHRINK) @ directions
    # what lies outside the rows' span is 0 in centred rows, whatever it is multiplied by
    expected = []
    for vectors in (centred, whitened):
        unit = F.normalize(torch.from_numpy(vectors), dim=1).numpy()
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -2)
        order = np.argsort(-cosines, axis=1)[:, :10]
        expected += [(order[:, 0] == by_features).mean(), (order == by_features[:, None]).any(axis=1).mean()]
    words = (
        "the nearest image by features is the nearest (among the 10 nearest) by pixels for "
        "{:.1f} % ({:.1f} %) of the images, by whitened pixels for {:.1f} % ({:.1f} %); by chance for 2.6 % (25.6 %)."
    ).format(*(100 * share for share in expected))
    assert f"last network, training features recomputed: neighbours and pixels: {words} Near 100 %" in said
    assert f"neighbours and pixels: {words}" in exported
    assert words in (tmp_path / "s" / "s" / "report.html").read_text()
    keys = [f"neighbours_{how}_{name}" for name in ("pixels", "whitened_pixels") for how in ("of", "near")]
    last = json.loads((tmp_path / "s" / "s" / "metrics.jsonl").read_text().splitlines()[-1])
    source = json.loads((tmp_path / "e" / "network.json").read_text())["source"]
    assert [last[key] for key in keys] == [source[key] for key in keys] == pytest.approx(expected)
