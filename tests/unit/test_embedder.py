"""The network as a run uses it: folded for evaluation, compiled, in bfloat16."""

import functools
import shutil

import pytest
import torch
from torch import nn

import models
from lib.compat import TORCH_RELEASE
from lib.errors import UserError
from lib.evaluation.features import extract
from lib.nn.embedder import Embedder

CPU = torch.device("cpu")
FEW_KERNELS = pytest.mark.skipif(TORCH_RELEASE < (2, 0), reason="this PyTorch pools no bfloat16 on a CPU")


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


@pytest.mark.parametrize(("name", "size"), [("resnet18", 16), ("resnet50", 16), ("alexnet", 32), ("convnet", 8)])
def test_the_folded_network_gives_the_features_of_evaluation_mode(name, size):
    network = trained_a_little(name, size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(6, 3, size, size)
    embedder = Embedder(network, CPU)
    with torch.no_grad():
        expected = network.eval()(images)
        features = embedder.eval_copy()(images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in embedder.eval_copy().network.modules())
    for key, value in network.state_dict().items():  # the network itself is as it was
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=FEW_KERNELS)])
@pytest.mark.parametrize(("name", "size"), [("resnet18", 16), ("alexnet", 32), ("convnet", 8)])
def test_backbone_features_are_the_input_of_the_last_layer(name, size, dtype):
    """Which a hook sees in the network itself; they keep up with it."""
    network = trained_a_little(name, size)
    images, seen = torch.randn(3, 3, size, size), []
    network.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    embedder = Embedder(network.eval(), CPU, dtype)
    for _ in range(2):
        with torch.no_grad():
            output = embedder(images)
            features, frozen = embedder.eval_copy(backbone=True)(images), embedder.eval_copy()(images)
            changed(network)
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is None else {"atol": 2e-2, "rtol": 0}
        assert (features.dtype, features.shape) == (torch.float32, (3, network.fc.in_features))
        torch.testing.assert_close(features, nn.functional.normalize(seen.pop(), dim=1), **tolerance)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(frozen, output, **{**tolerance, "atol": 5 * tolerance["atol"]})


class Awkward(nn.Module):
    """Batch norms that cannot be folded, and a convolution with a bias before one that can."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)
        self.of_shared, self.of_last = nn.BatchNorm2d(5), nn.BatchNorm2d(4, eps=0.1)
        self.of_batch, self.fc = nn.BatchNorm2d(4, track_running_stats=False), nn.Linear(4, 2)

    def forward(self, images):
        maps = self.shared(self.first(images))
        maps = self.of_last(self.last(self.of_shared(maps) + maps))
        return self.fc(self.of_batch(maps).mean(dim=(2, 3)))


def changed(network):
    """Other weights and other statistics."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(torch.rand_like(tensor) + 0.5)


def test_layers_that_cannot_be_folded_stay():
    torch.manual_seed(1)
    network = Awkward()
    changed(network)
    images = torch.randn(6, 3, 8, 8)
    embedder = Embedder(network, CPU)
    for _ in range(2):
        with torch.no_grad():
            expected = network.eval()(images)
            torch.testing.assert_close(embedder.eval_copy()(images), expected, atol=1e-5, rtol=1e-5)
        changed(network)
    left = [name for name, layer in embedder.eval_copy().network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert left == ["first", "of_shared", "of_batch"]


@pytest.mark.parametrize("first_in_inference_mode", [True, False])
def test_the_folded_network_follows_the_weights(first_in_inference_mode):
    network = trained_a_little("convnet", 16)
    images = torch.randn(6, 3, 16, 16)
    embedder = Embedder(network, CPU)
    for inference in (first_in_inference_mode, not first_in_inference_mode, first_in_inference_mode):
        with torch.inference_mode(inference), torch.set_grad_enabled(False):
            frozen = embedder.eval_copy()
            torch.testing.assert_close(frozen(images), network.eval()(images), atol=1e-5, rtol=1e-5)
        before = frozen(images).detach()
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network(images)[:, 0].sum().backward()
        optimizer.step()
        assert torch.equal(frozen(images), before)  # until the next call


def test_features_come_in_the_order_of_their_rows_whatever_the_batches():
    network = trained_a_little("convnet", 16)
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
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_computes_the_same_and_keeps_its_state_dict(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, compiled = Scaled(), Embedder(Scaled(), CPU, compiled_batch=5)
    data = torch.randn(5, 4)
    expected = plain(data)
    expected.sum().backward()
    features = compiled(data)
    features.sum().backward()
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(compiled.network.weight.grad, plain.weight.grad)
    assert list(compiled.network.state_dict()) == ["weight"]


@pytest.mark.skipif(TORCH_RELEASE < (2, 0), reason="needs torch.compile")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_only_batches_of_the_usual_size_are_compiled(monkeypatch):
    sizes = []

    def counting(graph, inputs):
        sizes.append(next(len(each) for each in inputs if each.dim() == 2))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    plain, compiled = Scaled(), Embedder(Scaled(), CPU, compiled_batch=5)
    with torch.no_grad():
        compiled(torch.randn(5, 4))  # from which an untrained network gets its statistics
    for size in (3, 5, 5, 6, 5, 2, 5):
        data = torch.randn(size, 4)
        torch.testing.assert_close(compiled(data), plain(data))
    assert sizes == [5]


@pytest.mark.skipif(TORCH_RELEASE < (2, 0), reason="needs torch.compile")
def test_compile_without_a_compiler_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        Embedder(Scaled(), CPU, compiled_batch=5)


@pytest.mark.skipif(TORCH_RELEASE >= (2, 0), reason="this PyTorch has torch.compile")
def test_compile_is_refused_where_pytorch_lacks_it():
    with pytest.raises(UserError, match="--compile needs PyTorch 2"):
        Embedder(Scaled(), CPU, compiled_batch=5)
