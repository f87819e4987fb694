"""A run says what pixels and the untrained network reach, and keeps it."""

import json

import numpy as np
import pytest

from datasets.sources.digits import digits
from lib.evaluation.baselines import below_pixels
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


def test_pixels_are_judged_as_an_independent_vote_judges_them(tmp_path, capsys):
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


def test_what_is_said_of_features_worse_than_pixels():
    found = {"pixels": 0.4, "whitened pixels": 0.5, "untrained network": 0.9}
    assert below_pixels(0.5, found) is None
    assert below_pixels(0.1, {}) is None
    said = below_pixels(0.45, found)
    assert said.startswith("the network's features (45.00 %) are worse than whitened pixels (50.00 %)")
    assert "than pixels (60.00 %)" in below_pixels(0.45, {"pixels": 0.6, "whitened pixels": 0.5})
