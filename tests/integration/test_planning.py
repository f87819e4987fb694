"""--threads and --minutes: the threads and the epochs that a run chooses by timed steps."""

import json
import math
import time

import pytest
import torch
import yaml
from PIL import Image

import main
from datasets.files.decode import read_rgb
from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import find_checkpoint
from lib.logger import console
from lib.runtime.threads import OtherPrograms
from lib.training import planning
from lib.training.planning import EVALUATION_COST, STEPS_SHARE, epochs_within
from tests.helpers.runs import TINY, error_line

RUN = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--network", "convnet", "--gpus", "cpu", "--precision",
    "fp32", "--limit-train", "40", "--limit-test", "10", "--batch-size", "16", "--low-dim", "16", "--max-round", "2",
    "--max-epoch", "1", "--no-report", "--no-log-tfb",
]  # fmt: skip


@pytest.fixture
def busy(monkeypatch):
    """Two cores, one of which another program keeps busy; one thread is the faster number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(planning, "cores", lambda: 2)
    monkeypatch.setattr(OtherPrograms, "cores", lambda self: 1.0)
    monkeypatch.setattr(planning, "is_busy", lambda others, wanted: others > 0)
    timed = []

    def one_is_faster(step, numbers, measure=planning.step_seconds):
        timed.append(sorted(measure(step, numbers)))
        return {1: 0.1, 2: math.inf}

    monkeypatch.setattr(planning, "step_seconds", one_is_faster)
    return timed


def run(folder, *arguments):
    assert main.main([*map(str, arguments), "--sess-dir", str(folder)]) == 0
    return torch.get_num_threads()


def test_minutes_are_planned_with_the_threads_that_were_timed(tmp_path, busy, monkeypatch):
    """With other numbers of threads a step on a busy machine may take fifty times as long."""
    threads = []

    def seconds(*given):
        threads.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(planning, "_image_seconds", seconds)
    without = [word for word in RUN if word != "--max-epoch"]
    del without[without.index("1")]
    assert run(tmp_path, *without, "--minutes", "0.01", "--session", "m") == 1
    assert threads == [1]
    assert busy == [[1, 2]]
    assert "threads   1 (images/s by threads" in (tmp_path / "m" / "log.txt").read_text()


def tensors(value, name=""):
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{name}/{key}")
    elif isinstance(value, torch.Tensor):
        yield name, value


def test_the_timed_number_of_threads_holds_for_the_run_and_its_resumption(tmp_path, busy):
    assert run(tmp_path, *RUN, "--session", "auto") == 1
    assert busy == [[1, 2]]
    log = (tmp_path / "auto" / "log.txt").read_text()
    assert "device    CPU, 1 thread; float32" in log
    expected = "threads   1 (images/s by threads: 1: 160, 2: too slow; other programs keep 1.0 processors busy; "
    assert expected in log

    run(tmp_path, *RUN, "--session", "one", "--threads", "1")
    assert len(busy) == 1
    timed, asked = (checkpoint.load(find_checkpoint(str(tmp_path / name), "")) for name in ("auto", "one"))
    assert timed["options"]["threads"] == "1"
    both = list(zip(tensors(timed), tensors(asked)))
    assert len(both) > 20
    for (name, one), (other_name, other) in both:
        assert name == other_name
        assert torch.equal(one, other), name

    torch.set_num_threads(2)
    assert run(tmp_path, "--resume", tmp_path / "auto", "--max-round", "3") == 1
    assert len(busy) == 1
    assert "threads   1 (--threads, checkpoint)" in (tmp_path / "auto" / "log.txt").read_text()
    run(tmp_path, "--resume", tmp_path / "auto", "--max-round", "4", "--threads", "auto")
    assert len(busy) == 2


def test_a_quiet_machine_is_not_timed(tmp_path, busy, monkeypatch):
    monkeypatch.setattr(OtherPrograms, "cores", lambda self: 0.0)
    assert run(tmp_path, *RUN, "--session", "s") == 2
    assert busy == []
    assert "threads   2 (all cores)" in (tmp_path / "s" / "log.txt").read_text()


@pytest.mark.parametrize("arguments", [["--augment-on", "workers", "--workers-num", "1"], ["--iter-size", "2"]])
def test_steps_are_timed_with_workers_and_in_groups_too(tmp_path, busy, arguments):
    assert run(tmp_path, *RUN, "--session", "s", "--max-round", "1", *arguments) == 1
    assert busy == [[1, 2]]


def test_a_run_whose_rate_falls_logs_it_once(tmp_path, monkeypatch):
    rates = iter([None, (10.0, 500.0), None])
    monkeypatch.setattr(console.RateWatch, "update", lambda self, images: next(rates, None))
    run(tmp_path, *RUN, "--session", "s", "--threads", "2", "--display-freq", "1")
    said = [line for line in (tmp_path / "s" / "log.txt").read_text().splitlines() if "images/s, less" in line]
    assert len(said) == 1
    assert "10 images/s, less than a third of the earlier 500; other programs may be using this machine" in said[0]
    assert said[0].endswith("end some of them, or stop the run and resume it with --threads 1")


WITHOUT_EPOCHS = [*TINY, "--no-brief"]
del WITHOUT_EPOCHS[WITHOUT_EPOCHS.index("--max-epoch") : WITHOUT_EPOCHS.index("--max-epoch") + 2]


def test_epochs_within_a_time_by_hand():
    # an epoch of 100 images and 50 test images takes 120 times 10 ms; 0.85 of a minute holds 42.5 of them
    assert (STEPS_SHARE, EVALUATION_COST) == (0.85, 0.4)
    assert epochs_within(60, 0.01, 100, 50, 1) == 42
    assert epochs_within(60, 0.01, 100, 50, 5) == 8
    assert epochs_within(60, 0.01, 100, 0, 1) == 51
    assert epochs_within(0.1, 0.01, 100, 50, 5) == 1


def test_a_run_has_the_epochs_that_fit_and_keeps_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 0.01)
    assert main.main([*WITHOUT_EPOCHS, "--minutes", "0.05", "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    # 3 s * 0.85 / (2 rounds * 0.01 s * (40 + 0.4 * 30)) = 2.45
    assert "epochs    2 epochs a round at 100 images/s, 0.0 minutes (--minutes)" in capsys.readouterr().out
    lines = (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()
    done = [(json.loads(line)["round"], json.loads(line)["epoch"]) for line in lines]
    assert done == [(0, 1), (0, 2), (1, 1), (1, 2)]
    config = yaml.safe_load((tmp_path / "s" / "config.yaml").read_text())
    assert (config["max_epoch"], config["minutes"]) == (2, 0.05)
    # a resumed run keeps the number
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 1e9)
    assert main.main(["--resume", str(tmp_path / "s"), "--max-round", "3"]) == 0
    assert len((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.fixture
def measured(monkeypatch):
    """The seconds of an image that --minutes has measured."""
    found = []

    def measure(*given, measure=planning._image_seconds):
        found.append(measure(*given))
        return found[-1]

    monkeypatch.setattr(planning, "_image_seconds", measure)
    return found


def slow_pixels(path, *given, read=read_rgb, **options):
    time.sleep(0.05)
    return read(path, *given, **options)


def test_the_time_of_an_image_is_that_of_a_long_epoch(tmp_path, monkeypatch, measured):
    """Pictures whose loading takes longer than the step: batches of several workers arrive together."""
    for number in range(48):
        path = tmp_path / "photos" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    monkeypatch.setattr("datasets.image_set.read_rgb", slow_pixels)
    given = [*WITHOUT_EPOCHS, "--dataset", "photos", "--data-root", tmp_path / "photos", "--size", "8", "--augment-on",
             "workers", "--workers-num", "4", "--batch-size", "2", "--limit-train", "48", "--minutes", "1e-9",
             "--sess-dir", tmp_path, "--session", "s", "--threads", "1"]  # fmt: skip
    assert main.main([*map(str, given)]) == 0
    lines = (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()
    took = [json.loads(line)["images_per_second"] for line in lines]
    assert 0.6 < measured[0] * max(took) < 1.7


def test_timing_does_not_change_the_run(tmp_path):
    """A run with --minutes equals the run with --max-epoch, to the bit."""
    assert main.main([*WITHOUT_EPOCHS, "--minutes", "1e-9", "--sess-dir", str(tmp_path), "--session", "timed"]) == 0
    assert main.main([*WITHOUT_EPOCHS, "--max-epoch", "1", "--sess-dir", str(tmp_path), "--session", "plain"]) == 0
    timed, plain = (checkpoint.load(tmp_path / name / "checkpoint" / "0001-00010.ckpt") for name in ("timed", "plain"))
    assert torch.equal(timed["npc"]["memory"], plain["npc"]["memory"])
    assert all(torch.equal(value, plain["net"][name]) for name, value in timed["net"].items())


def test_the_config_of_a_planned_run_gives_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 0.01)
    assert main.main([*WITHOUT_EPOCHS, "--minutes", "0.05", "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 1e-9)
    config = str(tmp_path / "s" / "config.yaml")
    assert main.main(["--cfgs", config, "--sess-dir", str(tmp_path), "--session", "t", "--no-brief"]) == 0
    assert f"epochs    2 epochs a round, as {config} has them (--minutes)" in (tmp_path / "t" / "log.txt").read_text()
    assert len((tmp_path / "t" / "metrics.jsonl").read_text().splitlines()) == 4
    own = tmp_path / "own.yaml"  # a recipe in one file chooses as one in two files does
    own.write_text("max_epoch: 200\nminutes: 0.05\n")
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 0.01)
    given = [*WITHOUT_EPOCHS[:3], str(own), *WITHOUT_EPOCHS[3:], "--sess-dir", str(tmp_path), "--session", "u"]
    assert main.main(given) == 0
    assert len((tmp_path / "u" / "metrics.jsonl").read_text().splitlines()) == 4


def test_minutes_are_for_new_runs(tmp_path, capsys):
    assert main.main([*TINY, "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    assert main.main(["--resume", str(tmp_path / "s"), "--minutes", "5"]) == 2
    assert "for a resumed one give --max-epoch or --max-round" in error_line(capsys.readouterr().err)


def test_a_short_epoch_of_batches_prepared_together_is_timed_after_a_step(monkeypatch, tmp_path, measured):
    """As on a GPU, whose first step takes seconds."""
    monkeypatch.setattr(Pipeline, "prepared_together", lambda self, order: 8)
    steps = []

    class Slow(planning.Step):
        def __call__(self, *given):
            steps.append(1)
            time.sleep(2.0 if len(steps) == 1 else 0)
            return super().__call__(*given)

    monkeypatch.setattr(planning, "Step", Slow)
    assert main.main([*WITHOUT_EPOCHS, "--minutes", "1e-9", "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    assert len(steps) == 1 + 5
    assert 40 * measured[0] < 1.5


def test_minutes_with_max_epoch_is_an_error(tmp_path, capsys):
    assert main.main([*WITHOUT_EPOCHS, "--minutes", "1", "--max-epoch", "3", "--debug"]) == 2
    assert "--minutes chooses --max-epoch by the speed of this machine" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_minutes_must_be_positive(capsys, value):
    assert main.main([*WITHOUT_EPOCHS, "--minutes", value, "--debug"]) == 2
    assert "--minutes" in error_line(capsys.readouterr().err)
