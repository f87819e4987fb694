"""The network with its memory format, precision, compilation and data parallelism, and its copies for evaluation."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lib.compat import HAS_EMPTY_CHANNELS_LAST, compiled, data_parallel
from lib.distributed.world import World
from lib.nn.sync_batch_norm import without_synchronisation
from lib.nn.winograd import without_winograd


class Embedder:
    """Runs a network for training, and makes its copies for evaluation.

    Args:
        network: images (B, 3, S, S) to unit features (B, D), float32 whatever the precision.
        device: of the network.
        dtype: of autocast, or None for float32.
        compiled_batch: images in the batches for which torch.compile compiles the network, in training; 0: none.
            Others run as they are: the last one of an epoch is not worth another compilation. With several processes
            every batch is compiled.
        world: the data-parallel processes, or None for one. Each has a replica of the network, and backward averages
            their gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: Optional[torch.dtype] = None,
        compiled_batch: int = 0,
        world: Optional[World] = None,
    ):
        several = world is not None and world.size > 1  # a small batch may leave a process without images
        # convolutions are faster channels last; state dicts are not affected
        usual = HAS_EMPTY_CHANNELS_LAST or not several
        self._format = torch.channels_last if usual else torch.contiguous_format
        self.network = network.to(device).to(memory_format=self._format)
        self.device, self.dtype = device, dtype
        self._forward: nn.Module = self.network
        self._compiled, self._compiled_batch = compiled(self.network) if compiled_batch else None, compiled_batch
        self._world = world
        self._folded: Optional[FoldedNetwork] = None
        self._eval_copy: Optional[Embedder] = None
        self._backbone: Optional[Embedder] = None
        if several:
            # batch norm's statistics are synchronised in each step, or after the epoch by sync_buffers()
            self._forward = data_parallel(self._forward if self._compiled is None else self._compiled)
            self._compiled = None

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=self._format)
        forward = self._forward
        if self._compiled is not None and torch.is_grad_enabled() and len(images) == self._compiled_batch:
            forward = self._compiled
        with _autocast(self.device, self.dtype):
            return forward(images)

    def no_sync(self) -> AbstractContextManager:
        """DistributedDataParallel.no_sync: within it gradients accumulate in each process without being averaged.

        The next forward and backward outside averages the sums over the processes. Run the forward pass within it
        too: that one decides.
        """
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()

    def sync_buffers(self) -> None:
        """Broadcast the buffers, batch norm's running statistics, from the first process."""
        if self._world is not None and self._world.size > 1:
            for buffer in self.network.buffers():
                self._world.broadcast(buffer, 0)

    def train(self, mode: bool = True) -> None:
        self.network.train(mode)

    def eval_copy(self, backbone: bool = False) -> "Embedder":
        """A copy for evaluation, with batch norm folded into the convolutions.

        The network is left in evaluation mode. Each call updates the copies of earlier calls.

        Args:
            backbone: whether the copy returns the input of the last layer `fc`, scaled to unit length, rather than
                its output.
        """
        self.network.eval()
        if self._folded is None or self._eval_copy is None:
            with torch.inference_mode(False):  # tensors made in inference mode cannot be updated outside it
                self._folded = FoldedNetwork(self.network)
                self._eval_copy = Embedder(self._folded.module, self.device, self.dtype)
        else:
            self._folded.update(self.network)
        if not backbone:
            return self._eval_copy
        if self._backbone is None:
            with torch.inference_mode(False):
                headless = self._folded.without_last_layer()
                self._backbone = Embedder(headless, self.device, self.dtype)
        return self._backbone

    def eval_stages(self) -> Callable[[Tensor], dict[str, Tensor]]:
        """A function from images (B, 3, S, S) to the activations after each stage of the network, by name.

        The network is left in evaluation mode.
        """
        plain: Any = plain_copy(self.network.eval())

        def outputs(images: Tensor) -> dict[str, Tensor]:
            with _autocast(self.device, self.dtype):
                return plain.stage_outputs(images.contiguous(memory_format=torch.channels_last))

        return outputs


def _autocast(device: torch.device, dtype: Optional[torch.dtype]) -> AbstractContextManager:
    """The context of the forward pass."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


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


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, non-persistent ones included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _is_of(node: object, kind: type, traced: fx.GraphModule) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(traced.get_submodule(str(node.target)), kind)
    )
