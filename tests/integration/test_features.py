"""--features and --whiten in a run, on a finished session, and in several processes, against NumPy in float64."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import and_discovery
import datasets
import models
from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.config import collect
from lib.errors import UserError
from lib.evaluation.features import SHRINK
from lib.export import network_files
from lib.export.kept_features import KeptFeatures
from lib.report import page
from main import main
from tests.helpers.processes import run as run_processes
from tests.helpers.runs import TINY, error_line
from tests.helpers.sessions import read_table

WANTED = ["--features", "backbone", "--whiten"]
LINE = "features: backbone, whitened: "


def accuracies_in(out):
    """Top-1 and top-5 in % from the output of a run."""
    return re.search(rf"{LINE}top-1 ([\d.]+) %, top-5 ([\d.]+) %", out).groups()


def whitened(train, rows):
    """Whitened rows by the singular values of the centred training rows (N, d), in float64."""
    mean = train.mean(axis=0)
    _, values, directions = np.linalg.svd(train - mean, full_matrices=False)
    rank = (values > 1e-9 * values.max()).sum()  # of N centred rows at most N - 1
    values, directions = values[:rank], directions[:rank]
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


@pytest.fixture(autouse=True)
def _without_onnx(request, monkeypatch):
    """Leave out ONNX, which takes seconds, except in its own test."""
    if "onnx" not in request.node.name:
        monkeypatch.setattr(network_files, "onnx_packages_missing", lambda: ("onnx",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first five test images as files."""
    folder = tmp_path_factory.mktemp("pictures")
    options = collect(TINY).options
    images = Pipeline(datasets.load("digits", None, False), options, torch.device("cpu")).test
    for number in range(5):
        images.read(number).convert("RGB").save(folder / f"{number}.png")
    return folder


@pytest.fixture
def no_data(monkeypatch):
    """Makes the data set unavailable."""

    def load(*_):
        raise UserError("there is no data/digits")

    monkeypatch.setattr(datasets, "load", load)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two sessions of one run: `asked` for whitened backbone features, and `plain`."""
    base = tmp_path_factory.mktemp("features")
    assert main([*TINY, *WANTED, "--protocol", "knn", "cluster", "--sess-dir", str(base), "--session", "asked"]) == 0
    assert main([*TINY, "--sess-dir", str(base), "--session", "plain"]) == 0
    return base


def final(session):
    return json.loads((session / "final.json").read_text())


def test_knn_on_whitened_backbone_features_by_hand(base):
    """With 40 images and 128 dimensions: N < d."""
    train, test, labels, answers = by_hand(base / "asked")
    assert train.shape[0] < train.shape[1]
    told = final(base / "asked")["features"]
    options = checkpoint.load(base / "asked" / "checkpoint" / "0001-00010.ckpt")["options"]
    expected = vote(train, test, labels, answers, options["knn_k"], options["npc_temperature"])
    assert told == {"level": "backbone", "whitened": True, "top1": expected[0], "top5": pytest.approx(expected[1])}
    last = json.loads((base / "asked" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["knn_features_top1"], last["knn_features_top5"]) == (told["top1"], told["top5"])


def test_the_published_protocol_and_the_training_do_not_change(base):
    asked, plain = final(base / "asked"), final(base / "plain")
    assert asked.pop("features")["top1"] != asked["top1"]
    assert asked == plain
    one, other = (checkpoint.load(base / name / "checkpoint" / "0001-00010.ckpt") for name in ("asked", "plain"))
    for name, weights in one["net"].items():
        assert torch.equal(weights, other["net"][name])
    assert torch.equal(one["npc"]["memory"], other["npc"]["memory"])
    assert not (base / "plain" / "features.npz").exists()


def test_the_session_stores_the_features_and_their_whitening(base):
    kept = KeptFeatures.read(base / "asked" / "features.npz")
    train, _, _, _ = by_hand(base / "asked")
    assert (str(kept.space), kept.round, kept.epoch) == ("backbone, whitened", 1, 2)
    np.testing.assert_allclose(kept.train.numpy(), train, atol=1e-3)


def test_a_run_logs_both_accuracies(base, tmp_path, capsys):
    """A finished run prints the line again when it is resumed."""
    session = shutil.copytree(base / "asked", tmp_path / "s")
    assert main(["--resume", str(session)]) == 0
    out = capsys.readouterr().out
    told = final(session)
    assert f"recomputed: top-1 {100 * told['top1']:.2f} %" in out
    assert accuracies_in(out)[0] == f"{100 * told['features']['top1']:.2f}"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert [row[3] for row in rows if row[0] == "backbone, whitened"] == [f"{100 * told['features']['top1']:.2f} %"]
    assert f"cluster {LINE}" in out


def test_test_only_can_evaluate_other_features_than_the_run(base, capsys):
    before = {path: path.read_bytes() for path in (base / "plain").rglob("*") if path.is_file()}
    expected = final(base / "asked")["features"]
    assert main(["--resume", str(base / "plain"), "--test-only", *WANTED]) == 0
    out = capsys.readouterr().out
    assert accuracies_in(out) == (f"{100 * expected['top1']:.2f}", f"{100 * expected['top5']:.2f}")
    assert f"knn top-1 {100 * final(base / 'plain')['top1']:.2f} %" in out
    assert {path: path.read_bytes() for path in (base / "plain").rglob("*") if path.is_file()} == before
    # and those of the run unless others are named
    assert main(["--resume", str(base / "asked"), "--test-only"]) == 0
    assert accuracies_in(capsys.readouterr().out) == accuracies_in(out)
    assert main(["--resume", str(base / "asked"), "--test-only", "--no-whiten", "--features", "embedding"]) == 0
    assert "features:" not in capsys.readouterr().out


def test_two_processes_find_what_one_finds(base):
    out = run_processes(2, ["--resume", base / "plain", "--test-only", *WANTED]).stdout
    assert accuracies_in(out)[0] == f"{100 * final(base / 'asked')['features']['top1']:.2f}"


def test_two_processes_store_the_features_of_one(base, tmp_path):
    session = shutil.copytree(base / "plain", tmp_path / "s")
    run_processes(2, ["--resume", session, *WANTED])
    one, two = (KeptFeatures.read(folder / "features.npz") for folder in (base / "asked", session))
    torch.testing.assert_close(two.train, one.train, atol=2e-3, rtol=0)
    torch.testing.assert_close(two.space.whitening.mean, one.space.whitening.mean)
    torch.testing.assert_close(two.space.whitening.matrix, one.space.whitening.matrix, atol=1e-3, rtol=1e-3)


def test_a_session_older_than_these_options_resumes(base, tmp_path, capsys):
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


def exported(session, folder, *more):
    arguments = ["--resume", session, "--export", folder, "--neighbours", 3, "--num-clusters", 4, *more]
    assert main(list(map(str, arguments))) == 0
    return folder


def embedded(session, pictures, folder, *more):
    arguments = ["--resume", session, "--embed", pictures, "--output", folder, "--neighbours", 3, "--num-clusters", 4]
    return main(list(map(str, [*arguments, *more])))


def test_exported_features_follow_the_steps_in_network_json(base, tmp_path):
    folder = exported(base / "asked", tmp_path / "e")
    told, features = json.loads((folder / "network.json").read_text()), np.load(folder / "features.npy")
    assert told["features"] == {
        "level": "backbone",
        "whitened": True,
        "steps": [
            "x = the input of the network's last layer fc, divided by its length",
            "y = (x - mean) @ matrix, by whitening.npz",
            "the feature is y / |y|",
        ],
    }
    assert (told["low_dim"], told["output"][:17]) == (16, "float32 (B, 128),")
    train, test, _, _ = by_hand(base / "asked")
    np.testing.assert_allclose(features, np.concatenate([train, test]), atol=2e-4)
    network = models.build(told["network"], told["low_dim"], told["stem"], told["size"])
    network.load_state_dict(torch.load(folder / "network.pt"))
    network.fc = torch.nn.Identity()
    pipeline = Pipeline(datasets.load("digits", None, False), collect(TINY).options, torch.device("cpu"))
    arrays = np.load(folder / "whitening.npz")
    for images, rows in pipeline.test_batches():
        with torch.no_grad():
            found = (network.eval()(images).numpy() - arrays["mean"]) @ arrays["matrix"]
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(found, features[40 + rows.numpy()], atol=1e-5)


def test_embedded_pictures_are_in_the_space_of_the_run_without_its_images(base, pictures, tmp_path, no_data):
    assert embedded(base / "asked", pictures, tmp_path / "new") == 0
    found = np.load(tmp_path / "new" / "features.npy")
    kept = KeptFeatures.read(base / "asked" / "features.npz").train.double().numpy()
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    cosines, rows = found @ kept.T, np.load(tmp_path / "new" / "neighbours.npy")
    np.testing.assert_allclose(np.take_along_axis(cosines, rows, 1), -np.sort(-cosines, axis=1)[:, :3], atol=1e-6)


def test_embedded_and_exported_features_and_clusters_agree(base, pictures, tmp_path):
    """Features stored by the run, or computed from the data set if the run did not store them."""
    rows = read_table(exported(base / "asked", tmp_path / "e") / "images.csv")[40:45]
    expected = np.load(tmp_path / "e" / "features.npy")[40:45]
    assert embedded(base / "asked", pictures, tmp_path / "kept") == 0
    assert embedded(base / "plain", pictures, tmp_path / "computed", *WANTED) == 0
    for name in ("kept", "computed"):
        np.testing.assert_allclose(np.load(tmp_path / name / "features.npy"), expected, atol=1e-5)
        told = read_table(tmp_path / name / "images.csv")
        assert [row["cluster"] for row in told] == [row["cluster"] for row in rows]
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "neighbours.npy") for name in ("kept", "computed")))


def test_backbone_features_alone_and_whitened_output(base, pictures, tmp_path):
    """Each of the two options alone, with --export and --embed."""
    for name, width, arguments in (("a", 128, ["--no-whiten"]), ("b", 16, ["--features", "embedding"])):
        folder = exported(base / "asked", tmp_path / name, *arguments)
        features = np.load(folder / "features.npy")
        assert features.shape == (70, width)
        assert (folder / "whitening.npz").exists() == (name == "b")
        assert embedded(base / "asked", pictures, tmp_path / f"{name}-new", *arguments) == 0
        np.testing.assert_allclose(np.load(tmp_path / f"{name}-new" / "features.npy"), features[40:45], atol=1e-5)
    train, test = features[:40].astype(np.float64), features[40:]
    plain = np.load(exported(base / "plain", tmp_path / "c") / "features.npy").astype(np.float64)
    np.testing.assert_allclose(test, whitened(plain[:40], plain[40:]), atol=2e-4)
    np.testing.assert_allclose(train, whitened(plain[:40], plain[:40]), atol=2e-4)


def test_network_onnx_gives_the_features_of_the_level(base, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = exported(base / "asked", tmp_path / "e")
    if not (folder / "network.onnx").exists():
        pytest.skip("onnx is not installed")
    told = json.loads((folder / "network.json").read_text())
    assert "the input of the network's last layer fc" in told["files"]["network.onnx"]
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, 8, 8)
    (found,) = session.run(["features"], {"images": images.numpy()})
    model = and_discovery.load(base / "asked", whiten=False)
    np.testing.assert_allclose(found, model.features(images).numpy(), atol=1e-5)


def test_the_python_interface_gives_the_runs_features_or_others_on_request(base, pictures, tmp_path):
    folder = exported(base / "asked", tmp_path / "e")
    expected = np.load(folder / "features.npy")
    paths = sorted(pictures.iterdir())
    for model in (and_discovery.load(base / "asked"), and_discovery.load(folder)):
        features = model.features(paths)
        np.testing.assert_allclose(features.numpy(), expected[40:45], atol=1e-5)
        similarities, rows = model.nearest(features, 2)
        best = -np.sort(-(expected[40:45] @ expected[:40].T), axis=1)[:, :2]
        np.testing.assert_allclose(similarities.numpy(), best, atol=1e-3)
        assert rows.max() < 40
    plain = and_discovery.load(base / "plain")
    again = and_discovery.load(base / "asked", features="embedding", whiten=False)
    assert torch.equal(plain.features(paths), again.features(paths))
    assert torch.equal(plain.memory, again.memory)
    backbone = and_discovery.load(base / "plain", features="backbone")
    assert backbone.features(paths).shape == (5, 128)
    with pytest.raises(and_discovery.UserError, match=r"features \(backbone\) are not kept with this network"):
        backbone.nearest(backbone.features(paths))
    with pytest.raises(and_discovery.UserError, match="keeps no whitening of its embedding features"):
        and_discovery.load(base / "plain", whiten=True)
    with pytest.raises(and_discovery.UserError, match="features='pixels': 'embedding' or 'backbone' is needed"):
        and_discovery.load(base / "plain", features="pixels")


def test_stored_features_of_another_epoch_are_not_used(base, pictures, tmp_path, capsys, no_data):
    session = shutil.copytree(base / "asked", tmp_path / "s")
    saved = checkpoint.load(session / "checkpoint" / "0001-00010.ckpt")
    checkpoint.save({**saved, "epoch": 1}, session / "checkpoint" / "0001-00010.ckpt")
    assert embedded(session, pictures, tmp_path / "new") == 2
    line = error_line(capsys.readouterr().err)
    assert line.startswith("error: --features backbone --whiten: no such features are kept with ")
    assert line.endswith("the training images to compute them from are not available: there is no data/digits")


def test_mistakes_are_one_line(base, pictures, tmp_path, capsys):
    assert embedded(base / "plain", pictures, tmp_path / "new", *WANTED, "--limit-train", 30) == 2
    assert "the images here are others (digits, 30); use the --dataset" in error_line(capsys.readouterr().err)
    session = shutil.copytree(base / "asked", tmp_path / "s")
    file = session / "features.npz"
    whole, arrays = file.read_bytes(), dict(np.load(file))
    for damaged in (b"", b"nothing", whole[:-30], whole[:5000] + b"xxxx" + whole[5004:]):
        file.write_bytes(damaged)
        assert embedded(session, pictures, tmp_path / "new") == 2
        assert f"{file} cannot be read" in error_line(capsys.readouterr().err)
    for change in (
        {"level": "pixels"},
        {"mean": arrays["mean"][:-1]},
        {"matrix": arrays["matrix"] * np.nan},
        {"train": arrays["train"][:, :-1]},
        {"round": "x"},
    ):
        np.savez(file, **{**arrays, **change})
        assert embedded(session, pictures, tmp_path / "new") == 2
        assert f"{file}: not what a run keeps there" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_the_report_shows_both_accuracies_and_the_features_that_were_asked_for(base, tmp_path, capsys, monkeypatch):
    shown = []

    def spy(name):
        original = getattr(page, name)

        def called(rows, features, *rest):
            shown.append(features)
            return original(rows, features, *rest)

        monkeypatch.setattr(page, name, called)

    spy("map_section")
    spy("contact_sheets")
    session = shutil.copytree(base / "asked", tmp_path / "s")
    assert main(["--resume", str(session), "--report-only"]) == 0
    told, text = final(session), (session / "report.html").read_text(encoding="utf-8")
    train, _, _, _ = by_hand(session)
    assert len(shown) == 2
    for features in shown:
        np.testing.assert_allclose(features.numpy(), train, atol=1e-3)
    assert f"top-1 {100 * told['top1']:.2f} %" in text
    assert f"(backbone, whitened) top-1 is {100 * told['features']['top1']:.2f} %" in text
    assert "similar features (backbone, whitened) lie close together" in text
    # of a run that has not come to its end the bank is shown
    (session / "features.npz").unlink()
    (session / "final.json").unlink()
    assert main(["--resume", str(session), "--report-only"]) == 0
    assert "(backbone, whitened)" not in (session / "report.html").read_text(encoding="utf-8")
    memory = checkpoint.load(session / "checkpoint" / "0001-00010.ckpt")["npc"]["memory"]
    assert torch.equal(shown[2], memory)
    assert torch.equal(shown[3], memory)
