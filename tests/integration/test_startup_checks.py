"""What the processes of a run fetch and compare before it starts: images, labels, bad images, weights."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets.files import bad_images
from datasets.files.bad_images import CheckedFiles
from datasets.image_set import ImageSet, Split
from lib.commands.call import _start_digest, check_same_images, open_images
from lib.commands.start import Fresh, FromWeights, Resumed
from lib.config import Options
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import UserError
from lib.pretrained.weights_file import WeightsFile
from tests.helpers.processes import in_processes


def pixels(count, value=0, **more):
    return ImageSet(np.full((count, 8, 8, 3), value, np.uint8), **more)


def loads(world, local_ranks, wanted=(True, True)):
    """Times and download flags with which each process loads a slow data set."""
    noted = []

    def load(name, root, download, labels):
        noted.append((time.time(), download))
        time.sleep(1.0 if download else 0.0)
        noted.append((time.time(), download))
        return Split("some", pixels(4), None)

    datasets.load = load
    open_images(
        Options(size=8, download=wanted[world.rank]), world, ProcessInfo(world.rank, 2, local_ranks[world.rank], 2)
    )
    return noted


def test_the_first_process_of_a_machine_fetches_and_the_other_waits(tmp_path):
    first, second = in_processes(loads, 2, tmp_path, (0, 1))
    assert [download for _, download in first] == [True, True]
    assert [download for _, download in second] == [False, False]
    assert second[0][0] >= first[1][0]


def test_on_machines_of_their_own_both_fetch(tmp_path):
    for noted in in_processes(loads, 2, tmp_path, (0, 0)):
        assert [download for _, download in noted] == [True, True]


def test_a_machine_that_fetches_nothing_waits_for_one_that_does(tmp_path):
    first, second = in_processes(loads, 2, tmp_path, (0, 0), (False, True))
    assert [download for _, download in first] == [False, False]
    assert [download for _, download in second] == [True, True]


def compared(world):
    """The error for each kind of difference."""
    train, other, test = pixels(4), pixels(4, 1), pixels(2)
    labelled = [pixels(4, labels=np.array([0, 1, 1, last]), classes=("a", "b")) for last in (0, 1)]
    pairs = {
        "same": ((train, test), (train, test)),
        "fewer": ((train, None), (pixels(3), None)),
        "others": ((train, None), (other, None)),
        "no test": ((train, test), (train, None)),
        "same labels": ((labelled[0], test), (labelled[0], test)),
        "no labels": ((labelled[0], test), (train, test)),
        "other labels": ((labelled[0], test), (labelled[1], test)),
        "other test labels": ((train, labelled[0]), (train, labelled[1])),
    }
    said = {}
    for name, sides in pairs.items():
        images, tests = sides[world.rank]
        try:
            check_same_images(world, images, images.fingerprint(), tests)
        except UserError as error:
            said[name] = str(error)
    return said


def test_a_process_with_other_images_or_labels_is_named(tmp_path):
    first, second = in_processes(compared, 2, tmp_path)
    assert first == second
    images, labels = ["fewer", "others", "no test"], ["no labels", "other labels", "other test labels"]
    assert list(first) == images + labels
    assert all(first[name].startswith("rank 1 found other images than rank 0") for name in images)
    assert all(first[name].startswith("rank 1 found other labels than rank 0") for name in labels)
    assert "rank 0: 4 training, 0 test, rank 1: 3 training, 0 test" in first["fewer"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten training and three test images, one of each kind bad in either half, and one in the last of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for part, count in (("train", 10), ("test", 3)):
        where = tmp_path / "data" / part / "a"
        where.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((9, 9, 3), 10 * number, np.uint8)).save(where / f"{number}.png")
    for bad in ("train/a/1.png", "train/a/8.png", "test/a/2.png"):
        (tmp_path / "data" / bad).write_bytes(b"no image")
    return tmp_path / "data"


def checks(world, folder):
    """The files that each process opens, keeps and leaves out, and its warnings."""
    opened, said, read = [], [], bad_images.read_rgb
    bad_images.read_rgb = lambda path: (opened.append(os.path.relpath(path, folder)), read(path))[1]
    bad_images.log.warning = lambda text, *values: said.append(text % values)
    options = Options(size=8, dataset="imagefolder", data_root=folder, skip_bad_images=True, workers_num=0)
    pipeline = open_images(options, world, ProcessInfo(world.rank, world.size, world.rank, world.size))
    skipped = [os.path.relpath(path, folder) for path in pipeline.skipped]
    return {
        "opened": opened,
        "said": said,
        "skipped": skipped,
        "train": len(pipeline.train),
        "test": len(pipeline.test),
    }


def test_bad_images_in_either_share_are_left_out_by_both(folder, tmp_path):
    first, second = in_processes(checks, 2, tmp_path, str(folder))
    assert first["opened"] == [*(f"train/a/{number}.png" for number in range(5)), "test/a/0.png"]
    assert second["opened"] == [*(f"train/a/{number}.png" for number in range(5, 10)), "test/a/1.png", "test/a/2.png"]
    for found in (first, second):
        assert found["skipped"] == ["train/a/1.png", "train/a/8.png", "test/a/2.png"]
        assert (found["train"], found["test"]) == (8, 2)
    assert second["said"] == []
    assert "2 of 10 training images cannot be read" in first["said"][0]
    assert "1.png" in first["said"][1]
    assert "8.png" in first["said"][2]
    (tmp_path / "meeting").unlink(missing_ok=True)
    again = in_processes(checks, 2, tmp_path, str(folder))  # what each found good is remembered
    assert [found["opened"] for found in again] == [["train/a/1.png"], ["train/a/8.png", "test/a/2.png"]]
    assert CheckedFiles([str(folder / "train" / "a" / f"{number}.png") for number in range(10)]).unknown() == [1, 8]


def test_records_of_good_files_by_several_writers_are_joined(folder):
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    writers = [CheckedFiles(paths) for _ in range(3)]
    for writer, rows in zip(writers, ([0, 1], [2], [5, 6])):
        writer.add(rows)
    known = set(range(len(paths))) - set(CheckedFiles(paths).unknown())
    assert known == {0, 1, 2, 5, 6}


@pytest.mark.parametrize("download", [False, True])
def test_one_process_does_not_wait(download, monkeypatch):
    split = Split("some", pixels(4), None)
    monkeypatch.setattr(datasets, "load", lambda *arguments: split)
    pipeline = open_images(Options(size=8, download=download), World.alone(), ProcessInfo())
    assert len(pipeline.train) == 4


TENSORS = [
    torch.arange(6.0).view(2, 3).t(),
    torch.ones(2, dtype=torch.bfloat16),
    torch.tensor(3),
    torch.tensor([True, False]),
    torch.empty(0, 4),
]


def fingerprint(tensors, memory=None, epoch=1):
    weights = {str(number): tensor for number, tensor in enumerate(tensors)}
    saved = {"round": 0, "epoch": epoch, "net": weights, "npc": {"memory": torch.ones(2, 2)}}
    return _start_digest(Resumed(saved, Path("f"))) + _start_digest(FromWeights(WeightsFile("f", "k", weights, memory)))


@pytest.mark.parametrize("number", range(4))
def test_weights_that_differ_are_noticed_in_any_dtype(number):
    others = [tensor.clone() for tensor in TENSORS]
    assert fingerprint(others) == fingerprint(TENSORS)
    first = (0,) * others[number].dim()
    others[number][first] = 0 if others[number][first] else 1
    assert fingerprint(others) != fingerprint(TENSORS)


def test_the_fingerprint_covers_bank_and_epoch():
    assert fingerprint(TENSORS, torch.zeros(2)) != fingerprint(TENSORS)
    assert fingerprint(TENSORS, epoch=2) != fingerprint(TENSORS)
    assert _start_digest(Fresh()) == _start_digest(Fresh()) != fingerprint(TENSORS)
