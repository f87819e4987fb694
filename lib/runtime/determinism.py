"""`--deterministic`: equal runs on the same GPU, bit for bit. Runs on a CPU are equal anyway."""

import os

import torch
from torch import Tensor, nn


def choose_algorithms(deterministic: bool) -> None:
    """Make PyTorch use deterministic algorithms, or the fastest ones.

    Call it before the first computation on a GPU: cuBLAS reads its setting once. An operation without a deterministic
    algorithm then raises an error.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # batches have one size, so the search for the fastest algorithm pays; its choice may vary between runs
    torch.backends.cudnn.benchmark = not deterministic


def without_adaptive_pooling(network: nn.Module, size: int) -> nn.Module:
    """Replace adaptive average pooling by two matrix products, in place: its CUDA gradient is not deterministic.

    Pooling to a single pixel is a mean and stays.

    Args:
        size: S of the images (B, 3, S, S).
    """
    found: dict[nn.Module, tuple[int, int]] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: found.update({module: inputs[0].shape[2:]}))
        for module in network.modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1))
    ]
    if not hooks:
        return network
    before = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    network.train(before)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in found:
                setattr(parent, name, _Pooling(found[child], child.output_size))
    return network


class _Pooling(nn.Module):
    """nn.AdaptiveAvgPool2d for inputs of one size: (B, C, H, W) -> (B, C, h, w)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: object):
        super().__init__()
        height, width = target if isinstance(target, tuple) else (target, target)
        self.register_buffer("rows", _windows(source[0], height), persistent=False)
        self.register_buffer("columns", _windows(source[1], width).t().contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(self.rows, images), self.columns)


def _windows(source: int, target: int) -> Tensor:
    """(target, source): row i averages pixels floor(i source / target) to ceil((i + 1) source / target)."""
    weights = torch.zeros(target, source)
    for row in range(target):
        start, stop = row * source // target, -(-(row + 1) * source // target)
        weights[row, start:stop] = 1.0 / (stop - start)
    return weights
