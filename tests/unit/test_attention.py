"""Attention maps against Grad-CAM by hooks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import models
from lib.figures.attention import attention, attention_stage, overlaid


def by_hooks(network, images, rows, stage):
    """Grad-CAM with module hooks on the forward pass and the sums in NumPy: (B, h, w)."""
    held = {}
    module = getattr(network, stage)
    hooks = [
        module.register_forward_hook(lambda _, __, output: held.update(activations=output)),
        module.register_full_backward_hook(lambda _, __, output: held.update(gradient=output[0])),
    ]
    features = network(images)
    maps = []
    for number in range(len(images)):  # one image at a time: the similarity of each by itself
        network.zero_grad()
        (features[number] @ rows[number].to(features.dtype)).backward(retain_graph=True)
        gradient = held["gradient"][number].detach().numpy()
        activations = held["activations"][number].detach().numpy()
        weights = gradient.reshape(len(gradient), -1).mean(axis=1)
        cam = np.maximum(np.einsum("c,chw->hw", weights, activations), 0)
        maps.append(cam / cam.max() if cam.max() > 0 else cam)
    for hook in hooks:
        hook.remove()
    return np.stack(maps)


@pytest.mark.parametrize(
    ("name", "size", "stage", "side"),
    [
        ("resnet18", 32, "layer4", 4),
        ("resnet18", 8, "layer2", 4),
        ("alexnet", 32, "conv5", 8),
        ("convnet", 8, "layer2", 4),
        ("convnet", 32, "layer3", 8),
    ],
)
def test_attention_is_grad_cam_of_the_similarity(name, size, stage, side):
    torch.manual_seed(0)
    network = models.build(name, 16, "auto", size).double()
    for layer in network.modules():  # a network that has seen something: statistics that are not the first ones
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    rows = F.normalize(torch.randn(3, 16, dtype=torch.float64), dim=1)
    network.train()
    seen = attention(network, images, rows)
    assert seen.stage == stage
    assert seen.maps.shape == (3, side, side)
    assert all(parameter.grad is None for parameter in network.parameters())
    # features leave the network as float32, so the two orders of summation part there
    assert seen.maps.numpy() == pytest.approx(by_hooks(network, images, rows, stage), abs=2e-4)


class Linear(nn.Module):
    """Two maps, their means, and a feature that is these: d(x . m) / dA_c is m_c / (h w) everywhere."""

    def stage_outputs(self, images):
        maps = images[:, :2] * 1.0
        return {"maps": maps, "fc": maps.mean(dim=(2, 3))}


def test_by_hand():
    images = torch.zeros(1, 3, 4, 4)
    images[0, 0, 1, 2], images[0, 1, 3, 3], images[0, 0, 3, 3] = 3.0, 8.0, 1.0
    seen = attention(Linear(), images.requires_grad_(), torch.tensor([[2.0, -0.5]]))
    expected = np.zeros((4, 4))
    expected[1, 2] = 1.0  # 2 * 3 is the largest; at (3, 3) it is 2 * 1 - 0.5 * 8, below 0
    assert seen.maps[0].detach().numpy() == pytest.approx(expected)
    nothing = attention(Linear(), images.detach().requires_grad_(), torch.tensor([[-1.0, -1.0]]))
    assert not nothing.maps.any()


def test_attention_takes_the_last_stage_with_spatial_resolution():
    def sides(*numbers):
        maps = {f"s{number}": torch.zeros(1, 2, number, number) for number in numbers}
        return {**maps, "fc": torch.zeros(1, 2)}

    assert attention_stage(sides(56, 28, 14, 7)) == "s7"
    assert attention_stage(sides(8, 4, 2, 1)) == "s4"
    assert attention_stage(sides(3, 2, 1)) == "s3"


def test_overlays_are_bright_where_attention_is_high():
    attended = np.zeros((4, 4), dtype=np.float32)
    attended[0, 3] = 1
    picture = np.asarray(overlaid(Image.new("RGB", (32, 32), (90, 90, 90)), attended, 80)).sum(axis=2)
    assert picture.shape == (80, 80)
    assert picture[:20, 60:].mean() > 1.5 * picture[40:, :40].mean()
