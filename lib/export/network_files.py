"""The network as files for others: weights, how to feed them, and ONNX."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from lib.config import Options
from lib.evaluation.feature_space import BACKBONE, EMBEDDING, FeatureSpace
from lib.export.kept_features import whitening_arrays
from lib.export.model import Preprocessing
from lib.export.onnx_file import INPUT, OUTPUT, write_onnx
from lib.export.result_folder import DESCRIPTION, ONNX, STATE, WHITENING
from lib.session import provenance

FORMAT = 1
_LEVELS = {
    EMBEDDING: "the network's output, of unit length",
    BACKBONE: "what the network's last layer fc takes, divided by its length",
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
        preprocessing: what its images go through.
        about: where it comes from, plain data.
        space: what a feature is, fitted.

    Returns:
        a line for the log about network.onnx.

    Raises:
        RunError: network.onnx does not compute what the network computes.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    whole = io.BytesIO()  # where the disk is full, PyTorch's own writing takes the process down (seen in 1.10)
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
        np.savez(folder / WHITENING, **whitening_arrays(space))
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
        "format": FORMAT,
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
