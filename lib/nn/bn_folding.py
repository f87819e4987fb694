"""Copies of a network for evaluation: of PyTorch's own layers, and with batch norm folded into convolutions."""

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lib.nn.sync_batch_norm import without_synchronisation
from lib.nn.winograd import without_winograd


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy of PyTorch's own layers only, with the same weights: for evaluation and for files."""
    return without_winograd(without_synchronisation(copy.deepcopy(network)))


class FoldedNetwork:
    """A network with its batch norms folded into the convolutions before them.

    It is traced once, which takes as long as some steps on a GPU; `update` copies later weights. Synchronised batch
    norms fold like any other. Batch norms that do not follow a convolution stay.

    Args:
        network: traceable by `torch.fx`; it is not changed.

    Attributes:
        module: the folded network, with the weights of the last `update`.
    """

    def __init__(self, network: nn.Module):
        with torch.inference_mode(False):  # tensors made in inference mode cannot be updated outside it
            self.module = fx.symbolic_trace(plain_copy(network).eval())
            self._pairs = _fold(self.module)
            folded = tuple(f"{convolution}." for convolution, _ in self._pairs)
            self._rest = {name: tensor for name, tensor in _tensors(self.module).items() if not name.startswith(folded)}
        self.update(network)

    def update(self, network: nn.Module) -> None:
        """Copy the present weights and statistics of the network that this was traced from."""
        with torch.inference_mode(False), torch.no_grad():
            for convolution, batch_norm in self._pairs:
                layer: Any = network.get_submodule(convolution)
                norm: Any = network.get_submodule(batch_norm)
                weight, bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                own: Any = self.module.get_submodule(convolution)
                own.weight.copy_(weight)
                own.bias.copy_(bias)
            present = _tensors(network)
            for name, tensor in self._rest.items():
                tensor.copy_(present[name])

    def without_last_layer(self) -> fx.GraphModule:
        """The same module with the same tensors, in which `fc` is the identity."""
        module = fx.GraphModule(self.module, self.module.graph)
        module.fc = nn.Identity()
        return module


def _fold(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Remove batch norms that follow a convolution, without folding weights; returns the names of both layers."""
    pairs = []
    for node in list(traced.graph.nodes):
        if not _is_of(node, nn.BatchNorm2d, traced) or not _is_of(node.args[0], nn.Conv2d, traced):
            continue
        convolution, norm = node.args[0], traced.get_submodule(node.target)
        if len(convolution.users) > 1 or norm.running_mean is None:
            continue
        layer = traced.get_submodule(convolution.target)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
        pairs.append((convolution.target, node.target))
        node.replace_all_uses_with(convolution)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return pairs


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, non-persistent ones included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _is_of(node: object, kind: type, traced: fx.GraphModule) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(traced.get_submodule(str(node.target)), kind)
    )
