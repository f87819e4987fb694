"""The network in the forms it runs in: folded for evaluation, compiled, in bfloat16."""

import shutil

import pytest
import torch
from torch import nn

import models
from lib.compat import TORCH_RELEASE
from lib.embedder import Embedder
from lib.errors import UserError
from lib.evaluation.features import extract

CPU = torch.device("cpu")


def trained_a_little(name, size):
    """A network whose batch norms have statistics of their own: folding one that changes nothing shows nothing."""
    torch.manual_seed(0)
    network = models.build(name, 16, "small", size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return network


@pytest.mark.parametrize(("name", "size"), [("resnet18", 16), ("resnet50", 16), ("alexnet", 32)])
def test_the_frozen_network_gives_the_features_of_the_network_in_evaluation_mode(name, size):
    network = trained_a_little(name, size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(6, 3, size, size)
    embedder = Embedder(network, CPU)
    with torch.no_grad():
        expected = network.eval()(images)
        features = embedder.frozen()(images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in embedder.frozen().network.modules())
    for key, value in network.state_dict().items():  # the network itself is as it was
        assert torch.equal(value, before[key]), key


def test_features_come_in_the_order_of_their_rows_whatever_the_batches():
    network = trained_a_little("resnet18", 16)
    images = torch.randn(7, 3, 16, 16)
    embedder = Embedder(network, CPU)
    batches = [(images[rows], rows) for rows in (torch.tensor([4, 0, 6]), torch.tensor([5, 1]), torch.tensor([2, 3]))]
    with torch.no_grad():
        expected = network.eval()(images)
    torch.testing.assert_close(extract(embedder, batches, slice(0, 7), 16), expected, atol=1e-5, rtol=1e-5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5]))

    def forward(self, images):
        return nn.functional.normalize(images * self.weight + 1.0, dim=1)


@pytest.mark.skipif(TORCH_RELEASE < (2, 0), reason="needs torch.compile")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_computes_the_same_and_keeps_its_state_dict():
    plain, compiled = Scaled(), Embedder(Scaled(), CPU, compile=True)
    data = torch.randn(5, 4)
    expected = plain(data)
    expected.sum().backward()
    features = compiled(data)
    features.sum().backward()
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(compiled.network.weight.grad, plain.weight.grad)
    assert list(compiled.network.state_dict()) == ["weight"]


@pytest.mark.skipif(TORCH_RELEASE < (2, 0), reason="needs torch.compile")
def test_compile_without_a_compiler_is_a_clear_refusal(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        Embedder(Scaled(), CPU, compile=True)


@pytest.mark.skipif(TORCH_RELEASE >= (2, 0), reason="this PyTorch has torch.compile")
def test_compile_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="--compile needs PyTorch 2"):
        Embedder(Scaled(), CPU, compile=True)
