"""Exports the network as files: weights, their description, and ONNX."""

import copy
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import models
from lib.compat import export_onnx, onnx_packages_missing
from lib.config import Options
from lib.errors import RunError
from lib.evaluation.features import BACKBONE, EMBEDDING, FeatureSpace
from lib.export.kept_features import whitening_arrays
from lib.export.model import Preprocessing
from lib.export.result_folder import DESCRIPTION, ONNX, STATE, WHITENING
from lib.session import provenance

EXPORT_FORMAT = 1
INPUT, OUTPUT = "images", "features"
"""Names of the ONNX file's input, (B, 3, S, S) float32, and of its output, (B, D) float32."""

TOLERANCE = 1e-4
"""Largest difference between a feature by onnxruntime and by PyTorch; both compute in float32."""
_LEVELS = {
    EMBEDDING: "the network's output, of unit length",
    BACKBONE: "the input of the network's last layer fc, divided by its length",
}


def write_network(
    folder: Path,
    network: nn.Module,
    options: Options,
    preprocessing: Preprocessing,
    about: dict[str, Any],
    space: FeatureSpace,
) -> str:
    """Write network.pt (a plain state dict), network.json (how to use it) and, if it can be, network.onnx.

    network.onnx gives features of the level of `space`, not whitened; whitening.npz whitens them.

    Args:
        network: whose weights are written.
        options: those that describe it.
        preprocessing: of its images.
        about: its provenance, plain data.
        space: the feature space, fitted.

    Returns:
        a line for the log about network.onnx.

    Raises:
        RunError: network.onnx does not compute what the network computes.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    whole = io.BytesIO()  # on a full disk PyTorch's own writer aborts the process (seen in 1.10)
    torch.save(weights, whole)
    (folder / STATE).write_bytes(whole.getbuffer())
    plain = models.build(options.network, options.low_dim, options.stem, options.size)
    plain.load_state_dict(weights)
    dim = space.dim(plain, options.low_dim)
    if space.level == BACKBONE:
        plain.fc = nn.Identity()
    note = write_onnx(plain.eval(), options.size, folder / ONNX)
    files = {STATE: "state dict for torch.load; its names are torchvision's for ResNets"}
    if (folder / ONNX).exists():
        files[ONNX] = f"input {INPUT!r}; output {OUTPUT!r}: {_LEVELS[space.level]}, not whitened"
    if space.whitened:
        arrays: dict[str, Any] = whitening_arrays(space)
        np.savez(folder / WHITENING, **arrays)
        files[WHITENING] = f"float32 arrays mean ({dim},) and matrix ({dim}, {dim}) for numpy.load"
    described = _description(options, preprocessing, about, space, dim, files)
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return note


def _description(
    options: Options,
    preprocessing: Preprocessing,
    about: dict[str, Any],
    space: FeatureSpace,
    dim: int,
    files: dict[str, str],
) -> dict[str, Any]:
    size = options.size
    steps = [f"x = {_LEVELS[space.level]}"]
    if space.whitened:
        steps.append(f"y = (x - mean) @ matrix, by {WHITENING}")
        steps.append("the feature is y / |y|")
    return {
        "format": EXPORT_FORMAT,
        "network": options.network,
        "low_dim": options.low_dim,
        "stem": models.stem_for(options.stem, size),
        "size": size,
        "resize": preprocessing.resize,
        "shrink": preprocessing.shrink,
        "means": list(preprocessing.means),
        "stds": list(preprocessing.stds),
        "preprocessing": preprocessing.steps(),
        "input": f"float32 (B, 3, {size}, {size}), B any number of images, channels red, green, blue",
        "features": {"level": space.level, "whitened": space.whitened, "steps": steps},
        "output": f"float32 (B, {dim}), rows of unit length; their inner product is the cosine similarity",
        "files": files,
        "source": about,
        "versions": {**provenance.versions(), "code": provenance.git_revision()},
    }


def write_onnx(network: nn.Module, size: int, path: Path) -> str:
    """Write the network as ONNX if the packages for it are installed, and check the file if onnxruntime is.

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
        return "network.onnx written; install onnxruntime and export again to have it checked"
    difference = _difference(path, network, torch.cat([images, 1 - images, images.flip(3)]))
    if not difference < TOLERANCE:
        raise RunError(f"network.onnx differs from the network by {difference:.1e}; please report this")
    return f"network.onnx written and checked with onnxruntime: features differ by {difference:.1e} at most"


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

    weights: Tensor

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
