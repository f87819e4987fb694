"""Whole commands on unusual folders: names in any bytes, replaced files of the same names, one class."""

import csv
import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import and_discovery
import main
from lib.checkpoint import io as checkpoint
from lib.export import network_files

RUN = ["--cfgs", "configs/base.yaml", "configs/photos.yaml", "--size", "16", "--shrink", "null", "--batch-size", "8"]
RUN += ["--network", "convnet", "--low-dim", "8", "--max-round", "2", "--max-epoch", "1", "--workers-num", "0"]
RUN += ["--gpus", "cpu", "--precision", "fp32", "--tfb-projector", "0", "--knn-k", "5", "--session", "x"]
FEW = ["--num-clusters", "2", "--neighbours", "3"]


@pytest.fixture(autouse=True)
def without_cache_and_onnx(tmp_path, monkeypatch):
    """Without the user's cache, and without ONNX, which is slow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(network_files, "onnx_packages_missing", lambda: ("onnx",))


def pictures(folder, count, seed=0, side=72):
    os.makedirs(folder, exist_ok=True)
    random = np.random.RandomState(seed)
    for number in range(count):
        with open(os.path.join(folder, f"{number}.png"), "wb") as file:
            coarse = random.randint(0, 256, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((side, side + number), Image.BILINEAR).save(file, "PNG")


def call(capsys, *arguments, status=0):
    found = main.main([os.fspath(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return err if status else out


def test_bytes_that_are_no_utf_8_in_every_path(tmp_path, capsys):
    root = os.path.join(tmp_path, os.fsdecode(b"data\xe9"))
    for part, count in (("train", 10), ("test", 3)):
        for name in (b"a", b"caf\xe9"):
            pictures(os.path.join(root, part, os.fsdecode(name)), count)
    session = os.path.join(root, os.fsdecode(b"s\xe9"), "x")
    base = [*RUN, "--dataset", "imagefolder", "--data-root", root, "--sess-dir", os.path.dirname(session)]
    call(capsys, *base, "--protocol", "knn", "cluster", "--num-clusters", "2")
    with open(os.path.join(session, "cluster-table.csv"), "rb") as file:
        assert file.readline() == b"cluster,size,matched_with,a,caf\xe9\r\n"
    assert os.path.getsize(os.path.join(session, "report.html")) > 10_000
    resume = ["--resume", session]
    call(capsys, *resume, "--max-epoch", "2")
    call(capsys, *resume, "--report-only")
    assert "caf\\udce9" in call(capsys, *resume, "--test-only")
    exported, embedded = os.path.join(root, "e"), os.path.join(root, os.fsdecode(b"m\xe9"))
    call(capsys, *resume, "--export", exported, *FEW)
    call(capsys, *resume, "--embed", os.path.join(root, "test"), "--output", embedded, *FEW)
    for folder in (exported, embedded):
        with open(os.path.join(folder, "images.csv"), "rb") as file:
            assert b"/caf\xe9/0.png" in file.read()
    call(capsys, "--compare", session, session, "--compare-html", os.path.join(root, "c.html"))
    again = os.path.join(session, "config.yaml")
    call(capsys, "--cfgs", again, "--session", "y", "--sess-dir", os.path.dirname(session), "--max-round", "1")
    assert torch.equal(and_discovery.load(session).folder(root)[1], and_discovery.load(exported).folder(root)[1])


@pytest.fixture
def trained(tmp_path, capsys):
    """A session on a folder of 20 pictures."""
    pictures(tmp_path / "p", 20)
    call(capsys, *RUN, "--data-root", tmp_path / "p", "--sess-dir", tmp_path / "s", "--no-report")
    return tmp_path / "s" / "x"


def test_a_session_does_not_resume_with_other_pictures_of_the_same_names(trained, tmp_path, capsys):
    shutil.copytree(tmp_path / "p", tmp_path / "kept")
    pictures(tmp_path / "p", 20, seed=1)
    resume = ["--resume", trained, "--max-epoch", "2", "--no-report"]
    err = call(capsys, *resume, status=2)
    assert "its memory bank belongs to other pictures of the same names: 20 of 20 files compared (" in err
    assert f"{tmp_path / 'p' / '0.png'}, " in err
    assert "--pretrained instead of --resume, or add --restart to continue with this bank in a new session" in err
    assert err.count("\n") == 1
    assert "was trained on other images" in call(
        capsys, "--resume", trained, "--export", tmp_path / "e", *FEW, status=2
    )
    out = call(capsys, "--resume", trained, "--embed", tmp_path / "p", "--output", tmp_path / "m", *FEW)
    assert "named by their rows, since the photos images here are not those of the checkpoint" in out
    assert "belongs to 20 other training images" in call(capsys, "--resume", trained, "--report-only", status=2)
    out = call(capsys, *RUN[:-1], "new", "--data-root", tmp_path / "p", "--sess-dir", tmp_path / "s", "--pretrained",
               next((trained / "checkpoint").glob("0001-*.ckpt")), "--no-report")  # fmt: skip
    assert "the file's bank belongs to other training images" in out
    out = call(capsys, *resume, "--restart", "--session", "z", "--sess-dir", tmp_path / "s")
    assert "training images have changed since the checkpoint was made: 20 of 20 files compared" in out
    shutil.rmtree(tmp_path / "p")
    shutil.copytree(tmp_path / "kept", tmp_path / "p")  # other times and numbers on the disk, the same pictures
    assert "have changed" not in call(capsys, *resume)


def test_edited_pictures_are_named_and_older_sessions_resume(trained, tmp_path, capsys):
    Image.new("RGB", (70, 70)).save(tmp_path / "p" / "3.png")
    out = call(capsys, "--resume", trained, "--max-epoch", "2", "--no-report")
    name = tmp_path / "p" / "3.png"
    assert f"training images have changed since the checkpoint was made: 1 of 20 files compared ({name})" in out
    pictures(tmp_path / "p", 20, seed=2)
    for path in (trained / "checkpoint").glob("*.ckpt"):
        saved = checkpoint.load(path)
        del saved["dataset"]["contents"]
        checkpoint.save(saved, path)
    assert "have changed" not in call(capsys, "--resume", trained, "--max-epoch", "3", "--no-report")


def test_one_class_shows_no_accuracies(tmp_path, capsys):
    pictures(tmp_path / "d" / "train" / "images", 12)
    pictures(tmp_path / "d" / "valid" / "images", 3)
    (tmp_path / "d" / "train" / "labels").mkdir()
    (tmp_path / "d" / "train" / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    base = [*RUN, "--dataset", "imagefolder", "--data-root", tmp_path / "d", "--sess-dir", tmp_path / "s"]
    out = call(capsys, *base)
    assert "one class only (images): every accuracy would be 100 %, so none is computed" in out
    assert "not classes, since they hold no pictures: labels/ in train" in out
    for word in ("top-1", "consistency", "accuracy 1", "100.00"):
        assert word not in out
    (line, *_) = (tmp_path / "s" / "x" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["knn_top1"] is None
    assert "consistency 100" not in (tmp_path / "s" / "x" / "report.html").read_text()
    err = call(capsys, "--resume", tmp_path / "s" / "x", "--test-only", status=2)
    assert "imagefolder has one class only (images), so every accuracy would be 100 %" in err


def test_classes_without_a_readable_training_image_are_named(tmp_path, capsys):
    for part, count in (("train", 6), ("test", 2)):
        for name in "abc":
            pictures(tmp_path / "d" / part / name, count)
    for path in (tmp_path / "d" / "train" / "c").iterdir():
        path.write_bytes(b"broken")
    base = [*RUN, "--dataset", "imagefolder", "--data-root", tmp_path / "d", "--sess-dir", tmp_path / "s"]
    out = call(capsys, *base, "--skip-bad-images", "--brief", "--no-report", "--max-round", "1")
    assert "2 test images cannot be recognised: the training images hold no other image of their class: c" in out
    assert "cannot be recognised" in call(capsys, "--resume", tmp_path / "s" / "x", "--test-only")


def test_export_and_embed_shrink_pictures_as_in_training(tmp_path, capsys, caplog):
    pictures(tmp_path / "p", 12, side=200)
    (tmp_path / "p" / "x.heic").write_text("not readable")
    run = [*RUN, "--shrink", "24", "--features", "embedding", "--no-whiten"]  # as --pretrained takes a network
    call(capsys, *run, "--data-root", tmp_path / "p", "--sess-dir", tmp_path / "s", "--no-report")
    resume = ["--resume", tmp_path / "s" / "x"]
    out = call(capsys, *resume, "--export", tmp_path / "e", *FEW)
    assert "skipped: 1 .heic (not readable here; convert them to JPEG to use them)" in out
    told = json.loads((tmp_path / "e" / "network.json").read_text())
    assert told["shrink"] == 24
    assert told["preprocessing"][1].startswith("cut the middle square and scale it to 24 x 24 pixels (PIL, bilinear")
    exported = torch.from_numpy(np.load(tmp_path / "e" / "features.npy"))
    with open(tmp_path / "e" / "images.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    network = next((tmp_path / "s" / "x" / "checkpoint").glob("0001-*.ckpt"))
    sources = (["--resume", network], ["--pretrained", network], ["--pretrained", tmp_path / "e" / "network.pt"])
    for number, source in enumerate(sources):
        output = tmp_path / f"m{number}"
        out = call(capsys, *source, "--embed", tmp_path / "p", "--output", output, *FEW, "--precision", "fp32",
                   "--workers-num", "0", "--gpus", "cpu")  # fmt: skip
        assert "1 .heic (not readable here" in out
        features = torch.from_numpy(np.load(output / "features.npy"))
        assert (features * exported).sum(dim=1).min() > 0.99999, source
    for place in (tmp_path / "s" / "x", tmp_path / "e"):
        model = and_discovery.load(place)
        assert model.preprocessing.shrink == 24
        assert (model.features(paths) * exported).sum(dim=1).min() > 0.99999
        plain = torch.stack([replace(model.preprocessing, shrink=None)(path) for path in paths])
        assert (model.features(plain) * exported).sum(dim=1).min() < 0.99999
        assert (model.features([Image.open(path) for path in paths]) * exported).sum(dim=1).min() > 0.99999
    with caplog.at_level(logging.WARNING, "and"):
        model.folder(tmp_path / "p")
    assert "skipped: 1 .heic" in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_whitened_features_of_a_picture_are_the_same_everywhere(kept, tmp_path, capsys):
    """Whitening magnifies differences, so the run, --export, --embed and Python must see the same pixels."""
    pictures(tmp_path / "p", 12, side=200)
    space = ["--features", "backbone", "--whiten", "--precision", "fp32", "--gpus", "cpu", "--workers-num", "0"]
    run = [*RUN, *space, "--shrink", "24", "--data-root", tmp_path / "p", "--sess-dir", tmp_path / "s", "--no-report"]
    call(capsys, *run)
    session = tmp_path / "s" / "x"
    if not kept:
        (session / "features.npz").unlink()  # then each call fits the whitening
    call(capsys, "--resume", session, "--export", tmp_path / "e", *FEW)
    call(capsys, "--resume", session, "--embed", tmp_path / "p", "--output", tmp_path / "m", *FEW)
    exported, embedded = (torch.from_numpy(np.load(tmp_path / name / "features.npy")) for name in "em")
    assert exported.shape == (12, 128)
    torch.testing.assert_close(embedded, exported, atol=1e-5, rtol=0)
    with open(tmp_path / "e" / "images.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    for place in (session, tmp_path / "e") if kept else (tmp_path / "e",):
        torch.testing.assert_close(and_discovery.load(place).features(paths), exported, atol=1e-5, rtol=0)


def test_a_model_trained_on_arrays_shrinks_no_pictures(tmp_path, capsys):
    """--shrink is about files: neither the run's images nor new pictures go through it."""
    pictures(tmp_path / "p", 3, side=40)
    run = [*RUN, "--dataset", "digits", "--limit-train", "40", "--size", "8", "--shrink", "16"]
    call(capsys, *run, "--sess-dir", tmp_path / "s", "--no-report")
    session = tmp_path / "s" / "x"
    call(capsys, "--resume", session, "--export", tmp_path / "e", *FEW)
    assert "the middle square" not in call(
        capsys, "--resume", session, "--embed", tmp_path / "p", "--output", tmp_path / "m", *FEW
    )
    assert json.loads((tmp_path / "e" / "network.json").read_text())["shrink"] is None
    for place in (session, tmp_path / "e"):
        assert and_discovery.load(place).preprocessing.shrink is None
