"""Runs in several processes as a user starts them: the numbers of one process, resumed in any number, killed."""

import json
import math
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lib.checkpoint import io as checkpoint
from lib.method.discovery import discover
from tests.helpers.html_page import check_rules
from tests.helpers.processes import SMALL, alive, free_port, launched, run, start_launcher, start_run, worker
from tests.helpers.runs import ROOT, checkpoints, start, wait_for


@pytest.mark.parametrize(("images", "rounds", "batches", "first"), [(50, 3, 1, 0), (50, 2, 2, 0), (11, 3, 1, 1)])
def test_two_and_three_processes_learn_what_one_learns(tmp_path, images, rounds, batches, first):
    """The same losses, step by step, and bank, anchors, neighbours, weights and accuracies after all rounds.

    One or two batches make an optimiser step.

    50 images leave a last batch of 2, fewer than 3 processes; 11 are fewer than a batch; 2 and 3 do not divide both.
    From round 1 on the bank starts with the features of the untrained network.
    """
    arguments = [*SMALL, "--limit-train", images, "--size", "16", "--max-round", rounds, "--max-epoch", 1]
    arguments += ["--iter-size", batches, "--first-round", first]
    found = {}
    for processes in (1, 2, 3):
        file = tmp_path / f"{processes}.pt"
        run(processes, [file, *arguments], "tests.helpers.float64_run")
        found[processes] = torch.load(file)
    one = found[1]
    assert len(one["losses"]) == (rounds - first) * math.ceil(images / 16)
    for processes in (2, 3):
        several = found[processes]
        np.testing.assert_allclose(several["losses"], one["losses"], atol=1e-9)
        torch.testing.assert_close(several["bank"], one["bank"], atol=1e-9, rtol=0)
        torch.testing.assert_close(several["entropy"], one["entropy"], atol=1e-9, rtol=0)
        assert torch.equal(several["anchors"], one["anchors"])
        assert torch.equal(several["neighbours"], one["neighbours"])
        assert several["consistency"] == one["consistency"]
        assert several["knn"] == one["knn"]
        for name, value in one["network"].items():
            torch.testing.assert_close(several["network"][name], value, atol=1e-8, rtol=1e-8)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """A folder with the same run in one process and in two."""
    folder = tmp_path_factory.mktemp("sessions")
    for processes, name in ((1, "one"), (2, "two")):
        run(processes, [*SMALL, "--limit-train", 50, "--log-tfb", "--report", "--sess-dir", folder, "--session", name])
    return folder


def files(session):
    return sorted(str(path.relative_to(session)) for path in session.rglob("*") if "tfevents" not in path.name)


def metrics(session):
    return [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]


def test_one_process_writes_for_all(sessions):
    assert files(sessions / "one") == files(sessions / "two")
    one, two = metrics(sessions / "one"), metrics(sessions / "two")
    assert [(line["round"], line["epoch"], line["anchors"]) for line in one] == [
        (line["round"], line["epoch"], line["anchors"]) for line in two
    ]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=0.02)
    log = (sessions / "two" / "log.txt").read_text()
    assert "2 processes, the first on CPU, 1 thread;" in log
    assert log.count("round 0 done") == 1
    page = check_rules((sessions / "two" / "report.html").read_text(encoding="utf-8"))
    assert "; 2 processes" in page.text
    assert page.tables["rounds"][2][:2] == ["1", "12"]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_of_two_processes_resumes_in_another_number(sessions, tmp_path, processes):
    session = tmp_path / "two"
    shutil.copytree(sessions / "two", session)
    run(processes, ["--resume", session, "--max-round", "3", "--brief"])
    lines = metrics(session)
    assert [(line["round"], line["epoch"]) for line in lines] == [(r, e) for r in range(3) for e in (1, 2)]
    last = checkpoint.load(session / "checkpoint" / "0002-00025.ckpt")
    assert last["npc"]["memory"].shape == (50, 16)
    torch.testing.assert_close(last["npc"]["memory"].norm(dim=1), torch.ones(50), atol=1e-5, rtol=0)
    # the round begins with what the file says, to the bit, whatever the number of processes
    before = checkpoint.load(session / "checkpoint" / "0001-00012.ckpt")
    expected = discover(before["npc"]["memory"], 2, 0.25, 1, before["options"]["npc_temperature"])
    assert torch.equal(last["ANs_discovery"]["anchor_indexes"], expected.anchor_indexes)
    assert torch.equal(last["ANs_discovery"]["neighbours"], expected.neighbours)


def test_evaluation_in_two_processes_prints_the_line_of_one(sessions):
    """Two of 30 test images may change: convolutions round by batch size, and barely trained features nearly tie."""
    said = [run(processes, ["--resume", sessions / "one", "--test-only"]).stdout for processes in (1, 2)]
    number = r"[\d.]+(?= %)"
    assert re.sub(number, "", said[0]) == re.sub(number, "", said[1])
    assert len(said[0].splitlines()) == 1
    one, two = ([float(found) for found in re.findall(number, line)] for line in said)
    np.testing.assert_allclose(two, one, atol=100 * 2 / 30 + 0.01)


def test_a_run_with_batch_norm_by_process(sessions, tmp_path):
    run(2, [*SMALL, "--limit-train", 50, "--no-sync-bn", "--sess-dir", tmp_path, "--session", "apart"])
    apart, two = metrics(tmp_path / "apart"), metrics(sessions / "two")
    assert len(apart) == len(two)
    assert apart[0]["loss"] != pytest.approx(two[0]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("how", "fresh"),
    [("torchrun", False), ("--gpus", False)]
    + [pytest.param(how, True, marks=pytest.mark.slow) for how in ("torchrun", "--gpus")],
)
def test_a_killed_process_ends_the_run_and_is_named(tmp_path, how, fresh):
    arguments = [*SMALL, "--limit-train", "100", "--max-epoch", "500", "--sess-dir", str(tmp_path), "--session", "run"]
    running = start_run(2, arguments, fresh=fresh) if how == "torchrun" else start_launcher(arguments, fresh=fresh)
    try:
        wait_for(lambda: checkpoints(tmp_path / "run"), running)
        victim = worker(running.pid, rank=1)
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert time.monotonic() - killed_at < 60
    assert running.returncode != 0
    assert re.search(
        r"rank 1 \(process \d+\) was killed by SIGKILL|rank\s*:\s*1 \(local_rank: 1\)|local_rank: 1", errors
    )
    assert not alive(victim)
    run(1, ["--resume", tmp_path / "run", "--test-only"])  # what was saved is intact


FAILING = """
import sys
sys.path.insert(0, {root!r})
import main
from lib.distributed.process_info import ProcessInfo
from lib.method.memory_bank import MemoryBank

update, steps = MemoryBank.update, []

def failing(bank, *batch):
    steps.append(batch)
    if ProcessInfo.here().rank == 1 and len(steps) == 3:
        raise RuntimeError("a bug in one process")
    update(bank, *batch)

MemoryBank.update = failing
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_failing_process_reports_its_error_and_is_named(tmp_path):
    program = tmp_path / "failing.py"
    program.write_text(FAILING.format(root=str(ROOT)))
    done = launched([*SMALL, "--limit-train", 50, "--sess-dir", tmp_path], program)
    assert done.returncode == 1
    assert "error: rank 1: unforeseen RuntimeError: a bug in one process" in done.stderr
    assert re.search(r"error: rank 1 \(process \d+\) ended with status 1, so all 2 processes were ended", done.stderr)


def test_an_image_that_one_process_cannot_read_is_a_user_error(tmp_path):
    """Each process opens the files of its half of the batch, so only one meets the bad file."""
    folder = tmp_path / "data" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(16):
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"no image")
    arguments = [*SMALL, "--dataset", "imagefolder", "--data-root", tmp_path / "data", "--augment-on", "workers"]
    done = launched([*arguments, "--workers-num", 0, "--sess-dir", tmp_path, "--max-round", 1])
    assert done.returncode == 2, done.stderr
    assert len(re.findall(r"error: rank \d: .*05\.png", done.stderr)) == 1
    assert "unforeseen" not in done.stderr


def test_a_download_that_fails_ends_the_processes_that_wait_for_it(tmp_path):
    nowhere = f"http://localhost:{free_port()}"
    arguments = [*SMALL, "--dataset", "cifar10", "--data-root", tmp_path, "--download", "--sess-dir", tmp_path]
    done = launched(arguments, http_proxy=nowhere, https_proxy=nowhere)
    assert done.returncode == 2, done.stderr
    assert len(re.findall(r"error: rank 0: .*cifar10", done.stderr)) == 1
    assert "unforeseen" not in done.stderr


def test_a_process_with_other_images_is_named_by_all(tmp_path):
    """Each process has a data folder of its own, as on separate machines."""
    for rank, count in enumerate((6, 7)):
        folder = tmp_path / str(rank) / "train" / "a"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(folder / f"{number}.png")
    program = tmp_path / "apart.py"
    program.write_text(APART.format(root=str(ROOT), folder=str(tmp_path)))
    done = launched([*SMALL, "--dataset", "imagefolder", "--sess-dir", tmp_path], program)
    assert done.returncode == 2, done.stderr
    said = r"error: rank \d: rank 1 found other images than rank 0 \(rank 0: 6 training, 0 test, rank 1: 7 training"
    assert len(re.findall(said, done.stderr)) == 2


APART = """
import os
import sys
sys.path.insert(0, {root!r})
import main
sys.exit(main.main([*sys.argv[1:], "--data-root", os.path.join({folder!r}, os.environ["RANK"])]))
"""


MASKS = """
import os
import sys
sys.path.insert(0, {root!r})
import torch
import main
from models.shared_dropout import SharedDropout
drawn, forward = [], SharedDropout.forward

def noting(layer, rows):
    dropped = forward(layer, rows)
    if layer.training:
        drawn.append(torch.where(rows == 0, torch.full_like(rows, -1), (dropped != 0).to(rows.dtype)).detach())
    return dropped

SharedDropout.forward = noting
status = main.main(sys.argv[1:])
torch.save(drawn, os.path.join({folder!r}, os.environ.get("RANK", "alone")))
sys.exit(status)
"""


def test_two_processes_draw_the_dropout_masks_of_one(tmp_path):
    program = tmp_path / "masks.py"
    program.write_text(MASKS.format(root=str(ROOT), folder=str(tmp_path)))
    arguments = [*SMALL, "--network", "alexnet", "--limit-train", 32, "--max-round", 1, "--debug"]
    assert launched(arguments, program).returncode == 0
    assert start(*arguments, program=(program,)).wait(60) == 0
    alone, first, second = (torch.load(tmp_path / name) for name in ("alone", "0", "1"))
    assert len(alone) == len(first) == len(second) == 2 * 2 * 2  # epochs, steps, layers
    for whole, *parts in zip(alone, first, second):
        two = torch.cat(parts)
        known = (whole >= 0) & (two >= 0)  # what is not zero anyway, which rounding decides for a few
        assert known.double().mean() > 0.2
        assert torch.equal(whole[known], two[known])


def test_a_user_error_is_printed_once_for_all_processes(tmp_path):
    with pytest.raises(AssertionError) as failure:
        run(2, [*SMALL, "--batch-size", "none", "--sess-dir", tmp_path])
    assert str(failure.value).count("error: rank 0: --batch-size") == 1
