"""Differences between the supported releases of PyTorch, from 1.10 on, and nothing else."""

import ctypes
import importlib.util
import inspect
import os
import shutil
import warnings
from collections.abc import Sequence
from typing import Any, Callable, Optional, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lib.errors import UserError


def _release(version: str) -> tuple:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


TORCH_RELEASE = _release(torch.__version__)
"""(major, minor) of the PyTorch that is running."""

HAS_WEIGHTS_ONLY = TORCH_RELEASE >= (1, 13)
"""Whether torch.load has `weights_only`, which refuses a file that holds more than data."""


def compiled(network: nn.Module) -> nn.Module:
    """The network compiled by torch.compile; parameters and state dict stay those of the network.

    Raises:
        UserError: this PyTorch is too old for it, or there is no C++ compiler.
    """
    if not hasattr(torch, "compile"):
        raise UserError(f"--compile needs PyTorch 2 or later, this is {torch.__version__}; leave it out")
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not any(map(shutil.which, compilers)):
        raise UserError("--compile needs a C++ compiler (g++ or clang++) on the PATH; install one or leave it out")
    return cast(nn.Module, torch.compile(network, dynamic=False))  # compiling a module gives a module


def data_parallel(network: nn.Module) -> DistributedDataParallel:
    """The network with gradients averaged over all processes; its buffers stay each process's own."""
    known = inspect.signature(DistributedDataParallel).parameters
    own_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {own_buffers: False}
    return DistributedDataParallel(network, gradient_as_bucket_view=True, **options)


def own_address(config: type) -> dict[str, Any]:
    """Arguments of LaunchConfig that keep the launcher from resolving this machine's name; none in older releases."""
    known = inspect.signature(config).parameters
    return {"local_addr": "localhost"} if "local_addr" in known else {}


def keep_process_group() -> None:
    """Keep a reference to torch.distributed's default group until the process ends, where its destructor can hang.

    Before PyTorch 2 (seen in 1.10) the destructor of Gloo's group waits for its threads while it holds the interpreter
    lock, and such a thread may be waiting for that lock to release a tensor. The threads end with the process.
    """
    if TORCH_RELEASE < (2, 0):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed.distributed_c10d._get_default_group()))


def fast_optimizer_arguments(kind: type, device: torch.device) -> dict[str, bool]:
    """Arguments that make an optimiser on CUDA one kernel and safe to capture, where PyTorch has them.

    On a CPU the fused form was no faster than the default when measured, so there is none.
    """
    if device.type != "cuda":
        return {}
    known = inspect.signature(kind).parameters
    return {name: True for name in ("fused", "capturable") if name in known}


norms: Optional[Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]] = getattr(torch, "_foreach_norm", None)
"""The norms of many tensors in a few CUDA kernels; None where PyTorch has no such function."""


HAS_SEEDS_IN_GRAPHS = TORCH_RELEASE >= (2, 0)
"""Whether a replayed CUDA graph draws random numbers from the present seed, not from that of its capture."""


HAS_CAPTURE_BESIDE_THREADS = "capture_error_mode" in inspect.signature(torch.cuda.graph.__init__).parameters
"""Whether a CUDA graph can be captured while another thread, such as one that pins batches, allocates memory."""


def capture(graph: "torch.cuda.CUDAGraph") -> torch.cuda.graph:
    """A context that captures this thread's CUDA work; other threads may allocate if `HAS_CAPTURE_BESIDE_THREADS`."""
    options: dict[str, Any] = {"capture_error_mode": "thread_local"} if HAS_CAPTURE_BESIDE_THREADS else {}
    return torch.cuda.graph(graph, **options)


HAS_FAST_BATCHED_PRODUCTS = TORCH_RELEASE >= (2, 0)
"""Whether batched matrix products on a CPU are fast: PyTorch 1.10's MKL is slow on AMD's CPUs."""


HAS_MIXED_BATCH_NORM = TORCH_RELEASE >= (2, 0)
"""Whether batch norm on a CPU takes bfloat16 images with float32 statistics."""


HAS_EMPTY_SYNC_BATCH_NORM = TORCH_RELEASE >= (1, 12)
"""Whether nn.SyncBatchNorm accepts a process without images of a batch."""


HAS_EMPTY_CHANNELS_LAST = TORCH_RELEASE >= (2, 0)
"""Whether a convolution with its weights channels last takes a batch of no images; PyTorch 1.10 refuses it."""


def onnx_packages_missing() -> tuple[str, ...]:
    """The packages that `export_onnx` needs with this PyTorch and that are not installed."""
    needed = ("onnx", "onnxscript") if _ONNX_BY_DYNAMO else ("onnx",) if TORCH_RELEASE >= (1, 13) else ()
    return tuple(name for name in needed if importlib.util.find_spec(name) is None)


_ONNX_BY_DYNAMO = TORCH_RELEASE >= (2, 9)
"""Whether the default of torch.onnx.export is the exporter that needs onnxscript."""


def export_onnx(network: nn.Module, images: torch.Tensor, path: str, inputs: str, outputs: str) -> None:
    """Write a network as ONNX, for any number of images.

    Args:
        network: in evaluation mode, on the CPU.
        images: (B, 3, S, S) an example, B at least 2.
        path: of the file; weights are in it.
        inputs, outputs: names of the input and the output.

    Raises:
        RuntimeError: the exporter cannot write this network.
    """
    names: dict[str, Any] = {"input_names": [inputs], "output_names": [outputs]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to developers
        if _ONNX_BY_DYNAMO:
            batch = torch.export.Dim("batch")
            options: dict[str, Any] = {"dynamic_shapes": ({0: batch},), "external_data": False, "verbose": False}
            torch.onnx.export(network, (images,), path, dynamo=True, **names, **options)
        else:
            axes = {inputs: {0: "batch"}, outputs: {0: "batch"}}
            torch.onnx.export(network, (images,), path, opset_version=13, dynamic_axes=axes, **names)
