"""network.onnx: the network for programs without PyTorch."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.compat import export_onnx, onnx_packages_missing
from lib.errors import RunError

INPUT, OUTPUT = "images", "features"
"""Names of what the file takes, (B, 3, S, S) float32, and gives, (B, D) float32."""

TOLERANCE = 1e-4
"""Largest difference between a feature by onnxruntime and by PyTorch; both compute in float32."""


def write_onnx(network: nn.Module, size: int, path: Path) -> str:
    """Write the network, if the packages for it are installed, and try it if onnxruntime is.

    Args:
        network: on the CPU, with plain batch norms, in evaluation mode.
        size: S.

    Returns:
        a line for the log: what was done or why not.

    Raises:
        RunError: the file does not compute what the network computes.
    """
    missing = onnx_packages_missing()
    if missing:
        return f"network.onnx left out; to get it too: pip install {' '.join(missing)}"
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        export_onnx(_with_plain_pooling(network, images), images, str(path), INPUT, OUTPUT)
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        return f"network.onnx left out: this PyTorch cannot write the network ({str(error).splitlines()[0]})"
    if importlib.util.find_spec("onnxruntime") is None:
        return "network.onnx written; install onnxruntime and export again to have it tried"
    difference = _difference(path, network, torch.cat([images, 1 - images, images.flip(3)]))
    if not difference < TOLERANCE:
        raise RunError(f"network.onnx differs from the network by {difference:.1e}; please report this")
    return f"network.onnx written and tried with onnxruntime: features differ by {difference:.1e} at most"


@torch.no_grad()
def _difference(path: Path, network: nn.Module, images: Tensor) -> float:
    import onnxruntime

    # from memory: it takes no path that is not UTF-8
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (features,) = session.run([OUTPUT], {INPUT: images.numpy()})
    return float(np.abs(features - network(images).numpy()).max())


@torch.no_grad()
def _with_plain_pooling(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy in which adaptive pooling that does not divide evenly is two matrix products: ONNX has no such layer."""
    network = copy.deepcopy(network)
    sides: dict[str, tuple[int, int]] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d):

            def remember(_: nn.Module, arguments: Any, output: Tensor, name: str = name) -> None:
                sides[name] = (arguments[0].shape[-1], output.shape[-1])

            hooks.append(layer.register_forward_hook(remember))
    network(images)
    for hook in hooks:
        hook.remove()
    for name, (source, target) in sides.items():
        if source % target:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, _MatrixPool(source, target))
    return network


class _MatrixPool(nn.Module):
    """nn.AdaptiveAvgPool2d(target) for square maps of one known side."""

    def __init__(self, source: int, target: int):
        super().__init__()
        weights = torch.zeros(target, source)
        for row in range(target):
            start, stop = row * source // target, -(-(row + 1) * source // target)
            weights[row, start:stop] = 1 / (stop - start)
        self.register_buffer("weights", weights)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, source, source) -> (B, C, target, target)."""
        return torch.matmul(self.weights, torch.matmul(maps, self.weights.t()))
