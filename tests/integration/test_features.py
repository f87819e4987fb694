"""--features and --whiten in a run, on a finished session, and on several processes, against NumPy in float64."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import datasets
import models
from datasets.pipeline import Pipeline
from lib.config import collect
from lib.evaluation.whitening import SHRINK
from lib.results.kept_features import KeptFeatures
from lib.session import checkpoint
from main import main
from tests.helpers.processes import run as run_processes
from tests.helpers.runs import TINY

WANTED = ["--features", "backbone", "--whiten"]
LINE = "features: backbone, whitened: "


def judged(out):
    """Top-1 and top-5 in per cent that a line tells."""
    return re.search(rf"{LINE}top-1 ([\d.]+) %, top-5 ([\d.]+) %", out).groups()


def whitened(train, rows):
    """By the singular values of the centred training rows (N, d), in float64."""
    mean = train.mean(axis=0)
    _, values, directions = np.linalg.svd(train - mean, full_matrices=True)
    values = np.concatenate([values, np.zeros(train.shape[1] - len(values))])
    found = (rows - mean) @ directions.T / (values + SHRINK * values.max()) @ directions
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_hand(session):
    """Whitened backbone features of training and test images, and their labels, from the state dict of a checkpoint."""
    saved = checkpoint.load(session / "checkpoint" / "0001-00010.ckpt")
    network = models.build("convnet", 16, "small", 8)
    network.load_state_dict(saved["net"])
    network.double().eval()
    options = collect(TINY).options
    pipeline = Pipeline(datasets.load("digits", None, False), options, torch.device("cpu"))
    found = []
    for part, batches in ((pipeline.train, pipeline.train_batches_plain()), (pipeline.test, pipeline.test_batches())):
        rows = np.empty((len(part), network.fc.in_features))
        for images, numbers in batches:
            with torch.no_grad():
                maps = network.layer3(network.layer2(network.layer1(network.stem(images.double()))))
                rows[numbers.numpy()] = F.normalize(network.avgpool(maps).flatten(1), dim=1).numpy()
        found.append(rows)
    return (*(whitened(found[0], rows) for rows in found), pipeline.train.labels, pipeline.test.labels)


def vote(train, test, labels, answers, k, sigma):
    """Top-1 and top-5 of the weighted vote."""
    votes = np.zeros((len(test), 10))
    for query, cosines in enumerate(test @ train.T):
        for row in np.argsort(-cosines)[:k]:
            votes[query, labels[row]] += np.exp(cosines[row] / sigma)
    ranks = (votes > votes[np.arange(len(test)), answers][:, None]).sum(axis=1)
    return (ranks < 1).mean(), (ranks < 5).mean()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two sessions of one run: `asked` for whitened backbone features, and `plain`."""
    base = tmp_path_factory.mktemp("features")
    assert main([*TINY, *WANTED, "--protocol", "knn", "cluster", "--sess-dir", str(base), "--session", "asked"]) == 0
    assert main([*TINY, "--sess-dir", str(base), "--session", "plain"]) == 0
    return base


def final(session):
    return json.loads((session / "final.json").read_text())


def test_the_vote_on_whitened_backbone_features_is_that_by_hand(base):
    """With 40 images and 128 dimensions: N < d."""
    train, test, labels, answers = by_hand(base / "asked")
    assert train.shape[0] < train.shape[1]
    told = final(base / "asked")["features"]
    options = checkpoint.load(base / "asked" / "checkpoint" / "0001-00010.ckpt")["options"]
    expected = vote(train, test, labels, answers, options["knn_k"], options["npc_temperature"])
    assert told == {"level": "backbone", "whitened": True, "top1": expected[0], "top5": pytest.approx(expected[1])}
    last = json.loads((base / "asked" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["knn_features_top1"], last["knn_features_top5"]) == (told["top1"], told["top5"])


def test_the_published_protocol_and_the_training_stay_as_they_are(base):
    asked, plain = final(base / "asked"), final(base / "plain")
    assert asked.pop("features")["top1"] != asked["top1"]
    assert asked == plain
    one, other = (checkpoint.load(base / name / "checkpoint" / "0001-00010.ckpt") for name in ("asked", "plain"))
    for name, weights in one["net"].items():
        assert torch.equal(weights, other["net"][name])
    assert torch.equal(one["npc"]["memory"], other["npc"]["memory"])
    assert not (base / "plain" / "features.npz").exists()


def test_the_session_keeps_the_features_and_their_whitening(base):
    kept = KeptFeatures.read(base / "asked" / "features.npz")
    train, _, _, _ = by_hand(base / "asked")
    assert (str(kept.space), kept.round, kept.epoch) == ("backbone, whitened", 1, 2)
    np.testing.assert_allclose(kept.train.numpy(), train, atol=1e-3)


def test_a_run_shows_both(base, tmp_path, capsys):
    """A finished run says it again when it is resumed."""
    session = shutil.copytree(base / "asked", tmp_path / "s")
    assert main(["--resume", str(session)]) == 0
    out = capsys.readouterr().out
    told = final(session)
    assert f"recomputed: top-1 {100 * told['top1']:.2f} %" in out
    assert judged(out)[0] == f"{100 * told['features']['top1']:.2f}"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert [row[3] for row in rows if row[0] == "backbone, whitened"] == [f"{100 * told['features']['top1']:.2f} %"]
    assert f"cluster {LINE}" in out


def test_test_only_can_ask_for_other_features_than_the_run(base, capsys):
    before = {path: path.read_bytes() for path in (base / "plain").rglob("*") if path.is_file()}
    expected = final(base / "asked")["features"]
    assert main(["--resume", str(base / "plain"), "--test-only", *WANTED]) == 0
    out = capsys.readouterr().out
    assert judged(out) == (f"{100 * expected['top1']:.2f}", f"{100 * expected['top5']:.2f}")
    assert f"knn top-1 {100 * final(base / 'plain')['top1']:.2f} %" in out
    assert {path: path.read_bytes() for path in (base / "plain").rglob("*") if path.is_file()} == before
    # and those of the run unless others are named
    assert main(["--resume", str(base / "asked"), "--test-only"]) == 0
    assert judged(capsys.readouterr().out) == judged(out)
    assert main(["--resume", str(base / "asked"), "--test-only", "--no-whiten", "--features", "embedding"]) == 0
    assert "features:" not in capsys.readouterr().out


def test_two_processes_find_what_one_finds(base):
    out = run_processes(2, ["--resume", base / "plain", "--test-only", *WANTED]).stdout
    assert judged(out)[0] == f"{100 * final(base / 'asked')['features']['top1']:.2f}"


def test_a_session_of_before_these_options_is_resumed(base, tmp_path, capsys):
    session = shutil.copytree(base / "plain", tmp_path / "s")
    file = session / "checkpoint" / "0001-00010.ckpt"
    saved = checkpoint.load(file)
    for name in ("features", "whiten"):
        del saved["options"][name]
    checkpoint.save(saved, file)
    assert main(["--resume", str(session)]) == 0
    assert "features:" not in capsys.readouterr().out
    assert final(session) == final(base / "plain")
    assert main(["--resume", str(session), *WANTED]) == 0
    assert final(session)["features"] == final(base / "asked")["features"]
    np.testing.assert_array_equal(*(np.load(each / "features.npz")["train"] for each in (session, base / "asked")))
