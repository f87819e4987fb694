"""The network with its memory format, precision, compilation and data parallelism: images to unit features."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib.compat import HAS_EMPTY_CHANNELS_LAST, compiled, data_parallel
from lib.distributed.world import World
from lib.nn.bn_folding import FoldedNetwork, plain_copy


class Embedder:
    """Runs a network for training, and makes its copies for evaluation.

    Args:
        network: images (B, 3, S, S) to unit features (B, D), float32 whatever the precision.
        device: of the network.
        dtype: of autocast, or None for float32.
        compile: whether torch.compile compiles the network.
        world: the data-parallel processes, or None for one. Each has a replica of the network, and backward averages
            their gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: Optional[torch.dtype] = None,
        compile: bool = False,
        world: Optional[World] = None,
    ):
        several = world is not None and world.size > 1  # a small batch may leave a process without images
        # convolutions are faster channels last; state dicts are not affected
        usual = HAS_EMPTY_CHANNELS_LAST or not several
        self._format = torch.channels_last if usual else torch.contiguous_format
        self.network = network.to(device).to(memory_format=self._format)
        self.device, self.dtype = device, dtype
        self._forward: nn.Module = compiled(self.network) if compile else self.network
        self._world = world
        self._folded: Optional[FoldedNetwork] = None
        self._eval_copy: Optional[Embedder] = None
        self._backbone: Optional[Embedder] = None
        if several:
            # batch norm's statistics are synchronised in each step, or after the epoch by sync_buffers()
            self._forward = data_parallel(self._forward)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=self._format)
        with _autocast(self.device, self.dtype):
            return self._forward(images)

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
