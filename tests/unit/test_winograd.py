"""Winograd convolutions: against the direct convolution, and where they are used."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import main
import models
from lib.compat import HAS_FAST_BATCHED_PRODUCTS
from lib.nn import winograd
from lib.nn.embedder import Embedder, plain_copy
from lib.nn.winograd import WinogradConvolution, convolution, count_winograd, use_winograd
from tests.helpers.runs import TINY

CPU = torch.device("cpu")


def as_written(images, weight):
    """y[b, k, i, j] = sum over c, u, v of weight[k, c, u, v] * images[b, c, i + u - 1, j + v - 1]."""
    batch, channels, height, width = images.shape
    padded = np.zeros((batch, channels, height + 2, width + 2))
    padded[:, :, 1:-1, 1:-1] = images
    result = np.zeros((batch, len(weight), height, width))
    for u in range(3):
        for v in range(3):
            part = padded[:, :, u : u + height, v : v + width]
            result += np.einsum("kc,bcij->bkij", weight[:, :, u, v], part)
    return result


def gradients_as_written(images, weight, upstream):
    """Of sum(upstream * y): for the images and for the weight, one term of the sum at a time."""
    height, width = images.shape[2:]
    of_images, of_weight = np.zeros_like(images), np.zeros_like(weight)
    for u in range(3):
        for v in range(3):
            for i in range(height):
                for j in range(width):
                    row, column = i + u - 1, j + v - 1
                    if 0 <= row < height and 0 <= column < width:
                        of_images[:, :, row, column] += upstream[:, :, i, j] @ weight[:, :, u, v]
                        of_weight[:, :, u, v] += upstream[:, :, i, j].T @ images[:, :, row, column]
    return of_images, of_weight


def example(batch, channels, kernels, height, width, dtype=torch.float64):
    draw = torch.Generator().manual_seed(height * 100 + width)
    images = torch.randn(batch, channels, height, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(kernels, channels, 3, 3, generator=draw, dtype=torch.float64) / (9 * channels) ** 0.5
    upstream = torch.randn(batch, kernels, height, width, generator=draw, dtype=torch.float64)
    return [each.to(dtype) for each in (images, weight, upstream)]


SIZES = [(4, 4), (8, 12), (7, 9), (5, 4), (1, 1), (2, 3), (13, 1)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_result_and_gradients_are_those_of_the_direct_convolution(height, width, layout):
    images, weight, upstream = example(3, 5, 4, height, width)
    leaves = [each.clone(memory_format=layout).requires_grad_() for each in (images, weight)]
    result = convolution(*leaves)
    of_images, of_weight = torch.autograd.grad(result, leaves, upstream.to(memory_format=layout))
    np.testing.assert_allclose(result.detach(), as_written(images.numpy(), weight.numpy()), atol=1e-12)
    expected = gradients_as_written(images.numpy(), weight.numpy(), upstream.numpy())
    np.testing.assert_allclose(of_images, expected[0], atol=1e-12)
    np.testing.assert_allclose(of_weight, expected[1], atol=1e-12)


def test_the_float32_error_is_a_few_millionths():
    plain, ours = [], []
    for size in (4, 8, 14):
        images, weight, upstream = example(16, 128, 128, size, size, torch.float32)
        found = []
        for function, dtype in ((convolution, None), (_plain, None), (_plain, torch.float64)):
            leaves = [each.to(dtype or torch.float32).requires_grad_() for each in (images, weight)]
            result = function(*leaves)
            found.append((result.detach(), *torch.autograd.grad(result, leaves, upstream.to(result.dtype))))
        for one, other, exact in zip(*found):
            ours.append(float((one - exact).norm() / exact.norm()))
            plain.append(float((other - exact).norm() / exact.norm()))
    assert max(ours) < 5e-6, (ours, plain)
    assert max(plain) > 1e-8, "the comparison is with something exact"


def _plain(images, weight):
    return F.conv2d(images, weight, padding=1)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradients_are_computed_only_where_required(wanted):
    images, weight, upstream = example(2, 3, 4, 8, 8)
    leaves = [each.requires_grad_(needs) for each, needs in zip((images, weight), wanted)]
    convolution(*leaves).backward(upstream)
    expected = gradients_as_written(images.detach().numpy(), weight.detach().numpy(), upstream.numpy())
    for leaf, needs, gradient in zip(leaves, wanted, expected):
        assert (leaf.grad is not None) == needs
        if needs:
            np.testing.assert_allclose(leaf.grad, gradient, atol=1e-12)


def test_no_images_give_no_result_and_a_gradient_of_zeros():
    images, weight, upstream = example(0, 3, 4, 8, 8)
    weight.requires_grad_()
    result = convolution(images, weight)
    result.backward(upstream)
    assert result.shape == (0, 4, 8, 8)
    assert torch.equal(weight.grad, torch.zeros(4, 3, 3, 3, dtype=torch.float64))


@pytest.fixture
def for_any_batch(monkeypatch):
    """Use it whatever the batch and the release of PyTorch; counts its uses."""
    uses = []
    monkeypatch.setattr(winograd, "HAS_FAST_BATCHED_PRODUCTS", True)
    monkeypatch.setattr(winograd, "_pays", lambda *_: True)
    monkeypatch.setattr(winograd, "convolution", lambda *given: uses.append(1) or convolution(*given))
    return uses


def network_of(kind="resnet18"):
    torch.manual_seed(0)
    return models.build(kind, 16, "small", 32)


def test_a_network_learns_the_same_with_winograd(for_any_batch):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    gradients = []
    for fast in (False, True):
        network = network_of().double()  # in float32, rounding moves values across ReLU's kink
        if fast:
            use_winograd(network, CPU, None)
        embedder = Embedder(network, CPU)
        embedder.train()
        embedder(images).backward(upstream)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    plain, ours = gradients
    assert len(for_any_batch) == 9  # the widest stages, without what has stride 2
    assert (ours - plain).norm() < 1e-5 * plain.norm()  # the features are float32 in any case


def test_the_same_step_gives_the_same_bits(for_any_batch):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        network = network_of()
        use_winograd(network, CPU, None)
        network.train()(images).sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    assert for_any_batch
    assert all(map(torch.equal, *found))


def test_evaluation_uses_plain_convolutions(for_any_batch):
    network = network_of()
    plain = network_of().eval()
    use_winograd(network, CPU, None)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), plain(images))
        network.train()(images)
    assert not for_any_batch


def test_small_batches_and_maps_that_do_not_fill_their_tiles_stay_plain(monkeypatch):
    monkeypatch.setattr(winograd, "HAS_FAST_BATCHED_PRODUCTS", True)
    monkeypatch.setattr(winograd, "convolution", lambda *_: pytest.fail("used"))
    layer = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1, bias=False))
    use_winograd(layer, CPU, None)
    assert count_winograd(layer) == 1
    layer(torch.randn(4, 512, 4, 4))
    layer(torch.randn(1100, 512, 1, 1))
    layer.double()(torch.randn(64, 512, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "side"), [(128, 16), (256, 8), (512, 4)])
def test_the_batch_of_the_paper_is_large_enough(channels, side, monkeypatch):
    """ResNet18 at 32 pixels and B = 128, also where two processes share it, but not where four do."""
    monkeypatch.setattr(winograd, "HAS_FAST_BATCHED_PRODUCTS", True)
    uses = []
    monkeypatch.setattr(winograd, "convolution", lambda images, _: uses.append(len(images)) or images)
    layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    use_winograd(layer, CPU, None)
    for batch in (128, 64, 32):
        layer(torch.zeros(batch, channels, side, side))
    assert uses == [128, 64]


@pytest.mark.parametrize("side", [7, 8, 14])
def test_the_result_and_the_gradient_can_be_used_like_any_other(side):
    """In place, and by kernels that want the channels last."""
    images, weight, upstream = example(2, 3, 5, side, side)
    images.requires_grad_()
    result = convolution(images, weight)
    (of_images,) = torch.autograd.grad(result, images, upstream, retain_graph=True)
    for each in (result, of_images):
        assert each.is_contiguous(memory_format=torch.channels_last)
    expected = result.detach().clamp_min(0)
    assert torch.equal(torch.relu_(result), expected)


def test_only_supported_convolutions_are_replaced(monkeypatch):
    monkeypatch.setattr(winograd, "HAS_FAST_BATCHED_PRODUCTS", True)
    others = [
        nn.Conv2d(128, 128, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(128, 128, 5, padding=2, bias=False),
        nn.Conv2d(128, 128, 1, bias=False),
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
    ]
    network = nn.Sequential(*others)
    use_winograd(network, CPU, None)
    assert count_winograd(network) == 0


def test_winograd_is_used_only_in_float32_on_a_cpu(monkeypatch):
    for known, device, dtype in ((True, CPU, torch.bfloat16), (True, torch.device("cuda"), None), (False, CPU, None)):
        monkeypatch.setattr(winograd, "HAS_FAST_BATCHED_PRODUCTS", known)
        network = network_of()
        use_winograd(network, device, dtype)
        assert count_winograd(network) == 0


@pytest.mark.parametrize(("kind", "layers"), [("resnet18", 9), ("resnet50", 10), ("alexnet", 3)])
def test_the_weights_and_their_names_stay_and_a_copy_is_plain(kind, layers, for_any_batch):
    network = network_of(kind)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    use_winograd(network, CPU, None)
    assert count_winograd(network) == layers
    copied = plain_copy(network)
    assert count_winograd(network) == layers
    assert not any(isinstance(layer, WinogradConvolution) for layer in copied.modules())
    for state in (network.state_dict(), copied.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_a_run_logs_whether_it_uses_winograd(tmp_path):
    said = {}
    short = ["--network", "resnet18", "--limit-train", "16", "--max-round", "1", "--max-epoch", "1"]
    for name, more in {"default": [], "off": ["--no-winograd"], "bf16": ["--precision", "bf16"]}.items():
        assert main.main([*TINY, *short, "--sess-dir", str(tmp_path), "--session", name, *more]) == 0
        said[name] = "9 convolutions by Winograd's filtering" in (tmp_path / name / "log.txt").read_text()
        assert json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"] > 0
    assert said == {"default": HAS_FAST_BATCHED_PRODUCTS, "off": False, "bf16": False}
