"""What two processes do about the images of a run before it starts: fetch, compare, check."""

import datetime
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import datasets
from datasets.image_set import ImageSet
from datasets.split import Split
from lib.config import Options
from lib.distributed.place import Place
from lib.distributed.world import World
from lib.errors import UserError
from lib.training.images import check_same, open_images


def run(job, folder, *arguments):
    """What each of two processes made of `job(world, *arguments)`."""
    mp.start_processes(_process, (job, str(folder), arguments), nprocs=2, start_method="spawn")
    return [torch.load(folder / str(rank)) for rank in range(2)]


def _process(rank, job, folder, arguments):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=limit)
    torch.save(job(World.joined(torch.device("cpu")), *arguments), f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def pixels(count, value=0):
    return ImageSet(np.full((count, 8, 8, 3), value, np.uint8))


def loads(world, local_ranks):
    """When and how each process loads, where loading takes a while."""
    noted = []

    def load(name, root, download, labels):
        noted.append((time.time(), download))
        time.sleep(1.0 if download else 0.0)
        noted.append((time.time(), download))
        return Split("some", pixels(4), None, (0.5,) * 3, (0.5,) * 3)

    datasets.load = load
    open_images(Options(size=8, download=True), world, Place(world.rank, 2, local_ranks[world.rank], 2))
    return noted


def test_the_first_process_of_a_machine_fetches_and_the_other_waits(tmp_path):
    first, second = run(loads, tmp_path, (0, 1))
    assert [download for _, download in first] == [True, True]
    assert [download for _, download in second] == [False, False]
    assert second[0][0] >= first[1][0]


def test_on_machines_of_their_own_both_fetch(tmp_path):
    for noted in run(loads, tmp_path, (0, 0)):
        assert [download for _, download in noted] == [True, True]


def compared(world):
    """What is said about each kind of difference."""
    train, other, test = pixels(4), pixels(4, 1), pixels(2)
    pairs = {
        "same": ((train, test), (train, test)),
        "fewer": ((train, None), (pixels(3), None)),
        "others": ((train, None), (other, None)),
        "no test": ((train, test), (train, None)),
    }
    said = {}
    for name, sides in pairs.items():
        images, tests = sides[world.rank]
        try:
            check_same(world, len(images), images.fingerprint(), tests)
        except UserError as error:
            said[name] = str(error)
    return said


def test_processes_with_other_images_are_named(tmp_path):
    first, second = run(compared, tmp_path)
    assert first == second
    assert list(first) == ["fewer", "others", "no test"]
    assert all(words.startswith("rank 1 found other images than rank 0") for words in first.values())
    assert "rank 0: 4 training, 0 test, rank 1: 3 training, 0 test" in first["fewer"]


@pytest.mark.parametrize("download", [False, True])
def test_one_process_waits_for_nobody(download, monkeypatch):
    split = Split("some", pixels(4), None, (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(datasets, "load", lambda *arguments: split)
    pipeline = open_images(Options(size=8, download=download), World.alone(), Place())
    assert len(pipeline.train) == 4
