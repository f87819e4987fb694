"""`--deterministic`: the same bits in every run on the same GPU. On a CPU runs are that in any case."""

import os

import torch
from torch import Tensor, nn


def choose_algorithms(deterministic: bool) -> None:
    """Let PyTorch use algorithms that give the same bits every time, or those that are fastest.

    To be called before anything is computed on a GPU: cuBLAS reads its setting once. What has no deterministic
    algorithm ends in an error from then on, it does not pass unnoticed.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # batches of one size: the search for the fastest algorithm pays, but may find another one the next time
    torch.backends.cudnn.benchmark = not deterministic


def without_adaptive_pooling(network: nn.Module, size: int) -> nn.Module:
    """The network with its adaptive average pooling as two matrix products: on CUDA its gradient has no
    deterministic algorithm. Pooling to a single pixel is a mean and stays. Changed in place.

    Args:
        size: S of the images (B, 3, S, S) that it is for.
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
    """(B, C, H, W) -> (B, C, h, w) for one H and W, as nn.AdaptiveAvgPool2d."""

    def __init__(self, source: tuple[int, int], target: object):
        super().__init__()
        height, width = target if isinstance(target, tuple) else (target, target)
        self.register_buffer("rows", _windows(source[0], height), persistent=False)
        self.register_buffer("columns", _windows(source[1], width).t().contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(self.rows, images), self.columns)


def _windows(source: int, target: int) -> Tensor:
    """(target, source): row i is the mean of pixels floor(i source / target) to ceil((i + 1) source / target)."""
    weights = torch.zeros(target, source)
    for row in range(target):
        start, stop = row * source // target, -(-(row + 1) * source // target)
        weights[row, start:stop] = 1.0 / (stop - start)
    return weights
