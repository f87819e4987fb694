"""The networks: shapes, sizes, names of weights, and features of unit length."""

import math

import numpy as np
import pytest
import torch
import torchvision
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

import models
from lib.errors import UserError

NETWORKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "alexnet",
    "convnet",
    "whitenet",
    "whitenet-wide",
)


def images(count, size):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def shapes(network, size):
    network.eval()
    with torch.no_grad():
        outputs = network.stage_outputs(images(2, size))
    assert tuple(outputs) == network.stages
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: on a shared machine synchronising threads takes longer than these small sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def resnet18():
    return models.build("resnet18", 128, "auto", 32)


@pytest.fixture(scope="module")
def small_alexnet():
    return models.build("alexnet", 128, "auto", 32)


def test_weights_have_torchvisions_names(resnet18):
    assert list(resnet18.state_dict()) == list(torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize(
    ("name", "torchvision_count", "width"),
    [("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512), ("resnet50", 25_557_032, 2048)],
)
def test_resnet_differs_from_torchvisions_in_fc_and_small_stem_alone(name, torchvision_count, width):
    body = torchvision_count - (width * 1000 + 1000)
    large = models.build(name, 128, "large", 224)
    small = models.build(name, 128, "small", 32)
    assert parameters(large) == body + width * 128 + 128
    assert parameters(small) == parameters(large) - 3 * 64 * (7 * 7 - 3 * 3)


@pytest.mark.parametrize(("name", "blocks"), [("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))])
def test_deep_resnets_have_their_blocks(name, blocks):
    network = models.build(name, 8, "small", 32)
    assert tuple(len(getattr(network, stage)) for stage in network.stages[1:5]) == blocks
    with torch.no_grad():
        assert network.eval()(images(1, 8)).shape == (1, 8)


def test_resnet18_with_small_stem_has_11234496_parameters(resnet18):
    assert parameters(resnet18) == 11_234_496


def test_alexnet_parameter_count_for_224():
    network = models.build("alexnet", 128, "auto", 224)
    convolutions = 3 * 96 * 121 + 96 * 256 * 25 + 256 * 384 * 9 + 384 * 384 * 9 + 384 * 256 * 9
    norms = 2 * (96 + 256 + 384 + 384 + 256)
    linears = (256 * 6 * 6 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 128 + 128)
    assert parameters(network) == convolutions + norms + linears


def test_resnet_stages_at_32_pixels(resnet18):
    assert shapes(resnet18, 32) == {
        "stem": (64, 32, 32),
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "layer4": (512, 4, 4),
        "fc": (128,),
    }


def test_resnet_stages_at_224_pixels():
    found = shapes(models.build("resnet18", 128, "auto", 224), 224)
    assert found["stem"] == (64, 56, 56)
    assert found["layer4"] == (512, 7, 7)


def test_alexnet_stages_at_32_pixels(small_alexnet):
    assert shapes(small_alexnet, 32) == {
        "conv1": (96, 32, 32),
        "conv2": (256, 16, 16),
        "conv3": (384, 8, 8),
        "conv4": (384, 8, 8),
        "conv5": (256, 8, 8),
        "fc": (128,),
    }


def test_alexnet_stages_at_224_pixels():
    assert shapes(models.build("alexnet", 128, "auto", 224), 224) == {
        "conv1": (96, 55, 55),
        "conv2": (256, 27, 27),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "fc": (128,),
    }


def test_convnet_parameter_count():
    convolutions = 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 128)
    norms = 2 * (32 + 32 + 64 + 128)
    assert parameters(models.build("convnet", 128, "auto", 8)) == convolutions + norms + (128 * 128 + 128) == 119_264


@pytest.mark.parametrize(
    ("size", "sides"), [(8, (8, 8, 4, 2)), (16, (16, 16, 8, 4)), (32, (32, 32, 16, 8)), (64, (16, 16, 8, 4))]
)
def test_convnet_stages(size, sides):
    stem, layer1, layer2, layer3 = ((width, side, side) for width, side in zip((32, 32, 64, 128), sides))
    expected = {"stem": stem, "layer1": layer1, "layer2": layer2, "layer3": layer3, "fc": (16,)}
    assert shapes(models.build("convnet", 16, "auto", size), size) == expected


def test_convnet_has_pytorchs_default_initialisation():
    torch.manual_seed(0)
    network = models.build("convnet", 128, "small", 8)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = layer.weight[0].numel() ** -0.5
            assert 0.98 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def convolved(images, weight, stride):
    """3x3, padding 1, by a loop over the nine places of the kernel."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    result = np.zeros((count, len(weight), -(-height // stride), -(-width // stride)))
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row : row + height : stride, column : column + width : stride]
            result += np.einsum("oc,nchw->nohw", weight[:, :, row, column], shifted)
    return result


@pytest.mark.parametrize(("stem", "strides"), [("small", (1, 1, 2, 2)), ("large", (2, 1, 2, 2))])
def test_convnet_against_numpy_in_float64(stem, strides):
    torch.manual_seed(0)
    network = models.build("convnet", 5, stem, 16).double().train()
    inputs = images(3, 16).double()
    with torch.no_grad():
        found = network(inputs).numpy()
    maps = inputs.numpy()
    for stage, stride in zip(network.stages[:4], strides):
        weight = getattr(network, stage)[0].weight.detach().numpy()
        maps = convolved(maps, weight, stride)
        mean, variance = maps.mean(axis=(0, 2, 3), keepdims=True), maps.var(axis=(0, 2, 3), keepdims=True)
        maps = np.maximum((maps - mean) / np.sqrt(variance + 1e-5), 0)
        if stage == "stem" and stem == "large":
            padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
            maps = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    features = maps.mean(axis=(2, 3)) @ network.fc.weight.detach().numpy().T + network.fc.bias.detach().numpy()
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert found == pytest.approx(expected, abs=1e-6)  # features leave the network as float32


@pytest.mark.parametrize("size", [8, 9, 28, 63])
def test_small_alexnet_takes_every_small_size(small_alexnet, size):
    small_alexnet.train()
    assert small_alexnet(images(2, size)).shape == (2, 128)


def test_large_alexnet_takes_the_smallest_size_in_its_error():
    network = models.build("alexnet", 16, "large", 63).eval()
    with torch.no_grad():
        assert network(images(1, 63)).shape == (1, 16)
    with pytest.raises(UserError, match="at least 63 pixels"):
        models.build("alexnet", 16, "large", 62)


# one of each kind of block
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "alexnet", "convnet", "whitenet", "whitenet-wide"])
def test_features_have_unit_length_and_gradients_reach_every_weight(name):
    network = models.build(name, 16, "small", 32)
    features = network(images(2, 8))
    assert features.shape == (2, 16)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-6)
    features[0, 0].backward()
    without = [key for key, weight in network.named_parameters() if weight.grad is None]
    assert without == (["stem.0.weight"] if name.startswith("whitenet") else [])
    first = next(weight for weight in network.parameters() if weight.requires_grad)
    assert first.grad.abs().sum() > 0  # of the first convolution that is trained


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "convnet", "whitenet"])
def test_feature_is_normalised_in_float32_under_autocast(name):
    network = models.build(name, 16, "small", 16).eval()
    inputs = images(2, 16)
    with torch.no_grad():
        exact = network(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = network(inputs)
            fc = network.stage_outputs(inputs)["fc"]
    for result in (features, fc):
        assert result.dtype == torch.float32
        assert torch.allclose(result.norm(dim=1), torch.ones(2), atol=1e-6)
        assert (result * exact).sum(dim=1).min() > 0.95


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "convnet", "whitenet"])
def test_stage_outputs_end_in_the_feature(name):
    network = models.build(name, 16, "small", 16).eval()
    inputs = images(3, 16)
    with torch.no_grad():
        outputs = network.stage_outputs(inputs)
        assert torch.equal(outputs["fc"], network(inputs))
    # an in-place ReLU of a later stage would show as a changed earlier one
    assert all(outputs[stage].min() >= 0 for stage in network.stages[:-1])
    assert outputs[network.stages[0]].max() > 0


def test_auto_stem_is_small_below_64_pixels():
    def kernel(size):
        return models.build("resnet18", 8, "auto", size).conv1.kernel_size

    assert (kernel(63), kernel(64)) == ((3, 3), (7, 7))


def test_names_are_case_insensitive(resnet18):
    assert list(models.build("ResNet18", 128, "small", 32).state_dict()) == list(resnet18.state_dict())


def test_an_unknown_network_error_lists_the_networks():
    with pytest.raises(UserError) as caught:
        models.build("vgg16", 128, "auto", 32)
    assert "--network vgg16" in str(caught.value)
    assert all(name in str(caught.value) for name in NETWORKS)


def test_an_unknown_stem_error_lists_the_stems():
    with pytest.raises(UserError, match=r"--stem tiny: .*auto, small, large"):
        models.build("resnet18", 128, "tiny", 32)


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "convnet", "whitenet"])
def test_same_seed_same_weights(name):
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(models.build(name, 8, "small", 32).state_dict())
    assert all(torch.equal(built[0][key], built[1][key]) for key in built[0])


def layers_of(network):
    """(layer, numbers that enter one of its outputs) of every convolution and linear layer."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            yield layer, layer.weight[0].numel()


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("resnet50", 64), ("alexnet", 32), ("convnet", 8), ("whitenet", 8)]
)
def test_released_weights_are_uniform_within_one_over_the_root_of_fan_in(name, size):
    torch.manual_seed(0)
    network = models.build(name, 128, "auto", size)
    for layer, fan_in in layers_of(network):
        bound = 1 / math.sqrt(fan_in)
        for values in (layer.weight, layer.bias):
            if values is not None:
                assert values.abs().max() <= bound
        many = layer.weight.numel()  # the deviation of a uniform's sample deviation is 0.45 of it / sqrt(many)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=3 / math.sqrt(many))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight))
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.parametrize("name", ["resnet18", "convnet"])
def test_torchvisions_initialisation_is_normal_with_variance_2_over_fan_out(name):
    torch.manual_seed(0)
    network = models.build(name, 128, "small", 32, "torchvision")
    for layer, _ in layers_of(network):
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            deviation = math.sqrt(2 / fan_out)
            assert layer.weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(layer.weight.numel()))
            assert layer.weight.abs().max() > 2.5 * deviation  # no uniform of that deviation reaches 1.74 of it
    assert network.fc.weight.abs().max() <= 1 / math.sqrt(network.fc.in_features)
