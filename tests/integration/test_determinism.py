"""One seed, one result, for any number of DataLoader workers and with --deterministic."""

import pytest
import torch
from torch import nn

import models
from benchmarks.same_run import differences
from lib.nn.embedder import Embedder
from lib.runtime.determinism import without_adaptive_pooling
from main import main
from tests.helpers.runs import TINY

SHORT = ["--max-round", "2", "--max-epoch", "1", "--limit-train", "24", "--augment-on", "workers", "--seed", "7"]


def session(tmp_path, name, *more):
    assert main([*TINY, *SHORT, "--sess-dir", str(tmp_path), "--session", name, *more]) == 0
    return tmp_path / name


@pytest.fixture(autouse=True)
def _afterwards_as_before():
    yield
    torch.use_deterministic_algorithms(False)


def test_the_number_of_loader_processes_and_of_saves_changes_nothing(tmp_path, capsys):
    alone = session(tmp_path, "alone", "--workers-num", "0", "--save-every", "null")
    three = session(tmp_path, "three", "--workers-num", "3", "--prefetch", "1", "--save-every", "1", "--keep", "1")
    assert differences(alone, three) == []
    other = session(tmp_path, "other", "--workers-num", "0", "--seed", "8")
    assert differences(alone, other) != []


def test_deterministic_runs_on_a_cpu_and_gives_what_it_gives_without(tmp_path, capsys):
    plain = session(tmp_path, "plain", "--workers-num", "0")
    strict = session(tmp_path, "strict", "--workers-num", "0", "--deterministic")
    assert differences(plain, strict) == []
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("stem", "size"), [("small", 32), ("large", 63), ("large", 95)])
def test_alexnet_pools_by_products_as_it_pools_otherwise(stem, size):
    torch.manual_seed(0)
    network = models.build("alexnet", 16, stem, size)
    images = torch.randn(2, 3, size, size)
    names = list(network.state_dict())
    network.eval()
    before = network(images)
    changed = without_adaptive_pooling(network, size)
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in changed.modules())
    torch.testing.assert_close(changed(images), before, atol=1e-5, rtol=1e-5)
    assert list(changed.state_dict()) == names
    torch.testing.assert_close(Embedder(changed, torch.device("cpu")).eval_copy()(images), before, atol=1e-4, rtol=1e-4)


def test_pooling_to_one_pixel_stays():
    network = models.build("resnet18", 16, "small", 8)
    assert any(isinstance(module, nn.AdaptiveAvgPool2d) for module in without_adaptive_pooling(network, 8).modules())
