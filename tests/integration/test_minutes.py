"""--minutes: epochs from a time."""

import json

import pytest
import torch
import yaml

import main
from lib.checkpoint import io as checkpoint
from lib.training import planning
from lib.training.planning import EVALUATION_COST, STEPS_SHARE, epochs_within
from tests.helpers.runs import TINY, error_line

RUN = [*TINY, "--no-brief"]
del RUN[RUN.index("--max-epoch") : RUN.index("--max-epoch") + 2]


def test_epochs_by_hand():
    # an epoch of 100 images and 50 test images takes 120 times 10 ms; 0.85 of a minute holds 42.5 of them
    assert (STEPS_SHARE, EVALUATION_COST) == (0.85, 0.4)
    assert epochs_within(60, 0.01, 100, 50, 1) == 42
    assert epochs_within(60, 0.01, 100, 50, 5) == 8
    assert epochs_within(60, 0.01, 100, 0, 1) == 51
    assert epochs_within(0.1, 0.01, 100, 50, 5) == 1


def test_a_run_has_the_epochs_that_fit_and_keeps_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "_image_seconds", lambda *given: 0.01)
    assert main.main([*RUN, "--minutes", "0.05", "--sess-dir", str(tmp_path), "--session", "s"]) == 0
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


def test_timing_changes_nothing(tmp_path):
    """The run is the one that --max-epoch starts, to the bit."""
    assert main.main([*RUN, "--minutes", "1e-9", "--sess-dir", str(tmp_path), "--session", "timed"]) == 0
    assert main.main([*RUN, "--max-epoch", "1", "--sess-dir", str(tmp_path), "--session", "plain"]) == 0
    timed, plain = (checkpoint.load(tmp_path / name / "checkpoint" / "0001-00010.ckpt") for name in ("timed", "plain"))
    assert torch.equal(timed["npc"]["memory"], plain["npc"]["memory"])
    assert all(torch.equal(value, plain["net"][name]) for name, value in timed["net"].items())


def test_both_are_a_mistake(tmp_path, capsys):
    assert main.main([*RUN, "--minutes", "1", "--max-epoch", "3", "--debug"]) == 2
    assert "--minutes chooses --max-epoch by the speed of this machine" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_time_is_a_positive_number(capsys, value):
    assert main.main([*RUN, "--minutes", value, "--debug"]) == 2
    assert "--minutes" in error_line(capsys.readouterr().err)
