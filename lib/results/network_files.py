"""The network as files for others: weights, how to feed them, and ONNX."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from lib.config import Options
from lib.results.model import Preprocessing
from lib.results.onnx_file import INPUT, OUTPUT, write_onnx
from lib.results.result_folder import DESCRIPTION, ONNX, STATE
from lib.session import provenance

FORMAT = 1


def write_network(
    folder: Path, network: nn.Module, options: Options, preprocessing: Preprocessing, about: dict[str, Any]
) -> str:
    """Write network.pt (a plain state dict), network.json (how to use it) and, if it can be, network.onnx.

    Args:
        network: whose weights are written.
        options: those that describe it.
        preprocessing: what its images go through.
        about: where it comes from, plain data.

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
    note = write_onnx(plain.eval(), options.size, folder / ONNX)
    described = _description(options, preprocessing, about, (folder / ONNX).exists())
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return note


def _description(
    options: Options, preprocessing: Preprocessing, about: dict[str, Any], has_onnx: bool
) -> dict[str, Any]:
    size, dim = options.size, options.low_dim
    files = {STATE: "state dict for torch.load; its names are torchvision's for ResNets"}
    if has_onnx:
        files[ONNX] = f"the same network; input {INPUT!r}, output {OUTPUT!r}"
    return {
        "format": FORMAT,
        "network": options.network,
        "low_dim": dim,
        "stem": models.stem_for(options.stem, size),
        "size": size,
        "resize": preprocessing.resize,
        "shrink": preprocessing.shrink,
        "means": list(preprocessing.means),
        "stds": list(preprocessing.stds),
        "preprocessing": preprocessing.steps(),
        "input": f"float32 (B, 3, {size}, {size}), B any number of images, channels red, green, blue",
        "output": f"float32 (B, {dim}), rows of unit length; their inner product is the cosine similarity",
        "files": files,
        "source": about,
        "versions": {**provenance.versions(), "code": provenance.git_revision()},
    }
