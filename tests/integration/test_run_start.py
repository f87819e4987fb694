"""How a run starts: its first round, the first rows of its bank; and the defaults that an old run resumes with."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml

import datasets
import main
import models
from datasets.image_set import limit
from lib.checkpoint import io as checkpoint
from lib.method.discovery import discover
from lib.seeding import derive
from lib.training.stopping import StopAndSavePolicy
from tests.helpers.runs import TINY

IMAGES, DIM, SEED = 40, 16, 3
RUN = [*TINY, "--seed", str(SEED)]
STILL = ["--base-lr", "1e-30", "--weight-decay", "0", "--npc-momentum", "0.9999999"]
"""With these the bank at the end of an epoch is what it was at its start."""


def run(*arguments, status=0):
    assert main.main([*map(str, arguments)]) == status


def untrained_features(init="released"):
    """(N, D) of the digits, by the network that a run starts with, without anything of the run. Its batch norms have
    the statistics of these images."""
    torch.manual_seed(derive(SEED, "network"))
    network = models.build("convnet", DIM, "small", 8, init)
    images = limit(datasets.load("digits", None, False).train, IMAGES, SEED)
    batch = (torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255 - 0.3054) / 0.3760
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(batch)
        return network.eval()(batch)


def metrics_of(session):
    return [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("init", ["released", "torchvision"])
def test_a_bank_of_features_is_what_the_untrained_network_makes_of_the_images(tmp_path, capsys, init):
    run(*RUN, *STILL, "--max-round", "1", "--max-epoch", "1", "--bank-init", "features", "--init", init,
        "--sess-dir", tmp_path, "--session", "s", "--no-brief")  # fmt: skip
    out = capsys.readouterr().out
    assert "memory bank filled with the untrained network's features of the training images" in out
    memory = checkpoint.load(tmp_path / "s" / "checkpoint" / "0000-00000.ckpt")["npc"]["memory"]
    assert torch.allclose(memory, untrained_features(init), atol=1e-4)
    assert not torch.allclose(memory, untrained_features({"released": "torchvision"}.get(init, "released")), atol=1e-2)


def test_bank_rows_are_random_by_default(tmp_path):
    run(*RUN, *STILL, "--max-round", "1", "--max-epoch", "1", "--sess-dir", tmp_path, "--session", "s")
    memory = checkpoint.load(tmp_path / "s" / "checkpoint" / "0000-00000.ckpt")["npc"]["memory"]
    assert (memory * untrained_features()).sum(dim=1).mean() < 0.5


@pytest.fixture(scope="module")
def without_round_0(tmp_path_factory):
    """A session of rounds 1 and 2 alone."""
    folder = tmp_path_factory.mktemp("first")
    run(*RUN, "--max-round", "3", "--first-round", "1", "--npc-temperature", "0.01", "--report", "--sess-dir", folder,
        "--session", "s")  # fmt: skip
    return folder / "s"


def test_the_first_anchors_come_from_the_untrained_network(without_round_0):
    saved = checkpoint.load(without_round_0 / "checkpoint" / "0001-00010.ckpt")
    features = untrained_features()
    found, expected = saved["ANs_discovery"], discover(features, 1, 0.25, 1, 0.01)
    assert torch.allclose(found["entropy"], expected.entropy, atol=1e-4)
    anchors, neighbours = found["anchor_indexes"], found["neighbours"][:, 0]
    assert expected.entropy[anchors].max() <= expected.entropy.sort().values[9] + 1e-4
    cosines = features[anchors] @ features.t()
    cosines[torch.arange(10), anchors] = -1
    assert torch.allclose(cosines[torch.arange(10), neighbours], cosines.max(dim=1).values, atol=1e-5)
    assert expected.entropy.max() - expected.entropy.min() > 1e-3
    assert [entry["round"] for entry in saved["history"]] == [1]


def test_a_run_without_round_0_says_so(without_round_0):
    assert [(r["round"], r["epoch"], r["anchors"]) for r in metrics_of(without_round_0)] == [
        (1, 1, 10), (1, 2, 10), (2, 1, 20), (2, 2, 20),
    ]  # fmt: skip
    assert not list((without_round_0 / "checkpoint").glob("0000*"))
    page = (without_round_0 / "report.html").read_text()
    assert "all 2 rounds completed" in page


@pytest.mark.parametrize("options", [("--first-round", "1"), ("--bank-init", "features")])
def test_it_resumes_within_its_first_epoch(tmp_path, monkeypatch, options):
    """After SIGTERM at step two the run resumes with the saved bank instead of a new one."""
    arguments = [*RUN, *options, "--max-round", "2", "--sess-dir", tmp_path]
    run(*arguments, "--session", "whole")
    between_steps = StopAndSavePolicy.between_steps

    def stopped(self, step, progress):
        if step == 2:
            self._stop.requested = signal.SIGTERM
        between_steps(self, step, progress)

    monkeypatch.setattr(StopAndSavePolicy, "between_steps", stopped)
    run(*arguments, "--session", "cut", status=143)
    monkeypatch.undo()
    run("--resume", tmp_path / "cut", "--brief")
    one, other = (
        checkpoint.load(max((tmp_path / name / "checkpoint").glob("0001-000??.ckpt"))) for name in ("whole", "cut")
    )
    assert torch.equal(one["npc"]["memory"], other["npc"]["memory"])
    assert all(torch.equal(value, other["net"][name]) for name, value in one["net"].items())


def test_an_old_session_resumes_with_its_own_defaults(tmp_path, capsys):
    """Its checkpoint has a sigma and a select rate, but none of the later options."""
    run(*RUN, "--max-round", "1", "--npc-temperature", "0.07", "--knn-sigma", "0.1", "--sess-dir", tmp_path,
        "--session", "old")  # fmt: skip
    path = tmp_path / "old" / "checkpoint" / "0000-00000.ckpt"
    saved = checkpoint.load(path)
    for name in ("init", "bank_init", "first_round"):
        del saved["options"][name]
    checkpoint.save(saved, path)
    capsys.readouterr()
    run("--resume", tmp_path / "old", "--max-round", "3", "--no-brief")
    assert "option init" not in capsys.readouterr().out
    options = yaml.safe_load(Path(tmp_path / "old" / "config.yaml").read_text())
    assert (options["init"], options["bank_init"], options["first_round"]) == ("torchvision", "random", 0)
    assert (options["knn_sigma"], options["ANs_select_rate"]) == (0.1, 0.25)
    assert [r["anchors"] for r in metrics_of(tmp_path / "old")] == [0, 0, 10, 10, 20, 20]


def test_seven_rounds_at_a_quarter_warn(tmp_path, capsys):
    run(*RUN, "--max-round", "7", "--max-epoch", "1", "--sess-dir", tmp_path, "--session", "s")
    out = capsys.readouterr().out
    assert "rounds 4 to 6 take all images as anchors (--ANs-select-rate 0.25); --ANs-select-rate auto" in out
    assert [r["anchors"] for r in metrics_of(tmp_path / "s")] == [0, 10, 20, 30, 40, 40, 40]
    run(*RUN, "--max-round", "7", "--max-epoch", "1", "--ANs-select-rate", "auto", "--sess-dir", tmp_path,
        "--session", "a")  # fmt: skip
    assert "take all images" not in capsys.readouterr().out
    assert [r["anchors"] for r in metrics_of(tmp_path / "a")] == [0, 6, 13, 20, 26, 33, 40]
