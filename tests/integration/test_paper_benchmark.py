"""Runs of the paper's items by main.py: made, killed, resumed, reused."""

import json
import os
import signal
import time

import pytest

from benchmarks.runs import processor
from benchmarks.same_run import differences
from tests.helpers.runs import call, start

SCALE = """
dataset: digits
size: 8
scale: (0.5, 1.)
limit_train: 96
limit_test: 60
network: convnet
precision: fp32
low_dim: 16
batch_size: 32
max_epoch: 1
max_round: 3
ANs_select_rate: auto
optimizer: adam
knn_k: 9
knn_sigma: 0.01
"""
PROGRAM = ("-m", "benchmarks.paper")


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "tiny.yaml"
    path.write_text(SCALE)
    return path


def arguments(scale, folder, *items, seeds=2):
    return [*items, "--scale", scale, "--seeds", seeds, "--sess-dir", folder / "s", "--reports", folder / "r",
            "--threads", 1, "--gpus", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def made(scale, tmp_path_factory):
    """The folder of an item with two seeds, and the output of the command."""
    folder = tmp_path_factory.mktemp("made")
    status, out, err = call(*arguments(scale, folder, "figure6", "figure6"), program=PROGRAM, timeout=300)
    assert (status, err) == (0, "")
    return folder, out


def test_an_item_from_one_command(made):
    folder, out = made
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["[1/2] figure6 and-s0", "[2/2] figure6 and-s1", "report"]
    assert sorted(path.name for path in (folder / "s" / "tiny").iterdir()) == ["and-s0", "and-s1"]
    assert [path.name for path in (folder / "s" / "tiny" / "and-s0" / "checkpoint").iterdir()] == ["0002-00096.ckpt"]
    found = json.loads((folder / "r" / "paper-tiny.json").read_text())
    figure, run = found["items"]["figure6"], found["variants"]["and"]
    for seed in ("0", "1"):
        final = json.loads((folder / "s" / "tiny" / f"and-s{seed}" / "final.json").read_text())
        assert run["knn"][seed] == final["top1"]
        assert sorted(run["linear"][seed]) == ["fc", "layer1", "layer2", "layer3", "stem"]
        assert run["machine"][seed] == processor()
    assert [statement["n"] for statement in figure["statements"]] == [2, 2, 2]
    assert (folder / "r" / "paper-tiny-figure6.svg").is_file()


def test_the_ladder_evaluates_its_networks(scale, tmp_path):
    status, _, err = call(*arguments(scale, tmp_path, "ladder", seeds=1), program=PROGRAM, timeout=300)
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "r" / "paper-tiny.json").read_text())
    ladder = report["items"]["ladder"]["variants"]
    assert len(ladder) == 8
    for name in ladder:
        found = report["variants"][name]
        session = tmp_path / "s" / "tiny" / f"{name}-s0"
        readouts = json.loads((session / "readouts.json").read_text())
        assert list(readouts) == ["embedding, plain", "embedding, whitened", "backbone, plain", "backbone, whitened"]
        assert readouts["embedding, plain"] == pytest.approx(found["knn"]["0"], abs=1e-4)  # read by other code
        last = json.loads((session / "metrics.jsonl").read_text().splitlines()[-1])
        assert found["rank"]["0"] == last["rankme_embedding"]
        assert 1 < last["rankme_embedding"] <= 16.01
        assert found["processor"]["0"] > 0


def test_finished_runs_are_used_again(made, scale):
    folder, _ = made
    before = (folder / "s" / "tiny" / "and-s0" / "starts.jsonl").read_text()
    status, out, err = call(*arguments(scale, folder, "figure6"), program=PROGRAM)
    assert (status, out, err) == (0, f"report: {folder / 'r' / 'paper-tiny.md'}\n", "")
    assert (folder / "s" / "tiny" / "and-s0" / "starts.jsonl").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed(made, scale, tmp_path, number):
    folder, _ = made
    process = start(*arguments(scale, tmp_path, "figure6"), program=PROGRAM, start_new_session=True)
    session = tmp_path / "s" / "tiny" / "and-s0"
    until = time.monotonic() + 120
    while not list(session.glob("checkpoint/*.ckpt")) and time.monotonic() < until:
        time.sleep(0.01)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)  # as timeout does; a terminal's Ctrl-C too reaches all of the group
    else:
        lock = json.loads((session / "session.lock").read_text())
        os.kill(lock["pid"], number)  # the run alone: what waits for it says so and makes the next
    out, err = process.communicate(timeout=120)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "stopped; the same command continues" in err
        assert len(out.splitlines()) == 2  # no run after it
    else:
        assert process.returncode == 1
        assert "error: failed: and-s0" in err
        assert "[1/2] figure6 and-s0: status -9" in out
    status, out, err = call(*arguments(scale, tmp_path, "figure6"), program=PROGRAM)
    assert (status, err) == (0, "")
    for seed in (0, 1):
        assert (
            json.loads((tmp_path / f"s/tiny/and-s{seed}/final.json").read_text())["top1"]
            == (json.loads((folder / f"s/tiny/and-s{seed}/final.json").read_text())["top1"])
        )
    starts = (session / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2
    assert json.loads(starts[1])["went_on_from"] is not None
    assert differences(session, folder / "s" / "tiny" / "and-s0") == []


def test_a_run_of_another_process_is_left_alone(made, scale, tmp_path):
    process = start("--cfgs", "configs/base.yaml", scale, "--protocol", "knn", "linear", "--max-epoch", 1, "--sess-dir",
                    tmp_path / "s" / "tiny", "--session", "and-s0", "--gpus", "cpu", "--display-freq", 1)  # fmt: skip
    lock = tmp_path / "s" / "tiny" / "and-s0" / "session.lock"
    until = time.monotonic() + 120
    while not (lock.exists() and lock.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    try:
        status, out, err = call(*arguments(scale, tmp_path, "figure6", seeds=1), program=PROGRAM)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
    assert status == 1
    assert "is in use by process" in out
    assert "error: failed: and-s0" in err
