"""Images in, unit features out: the network with the memory format and precision it runs in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib.compat import HAS_EMPTY_CHANNELS_LAST, compiled, data_parallel
from lib.distributed.world import World
from lib.nn.bn_folding import FoldedNetwork, plain_copy


class Embedder:
    """Runs a network.

    Args:
        network: images (B, 3, S, S) to unit features (B, D), float32 whatever the precision.
        device: where it runs.
        dtype: of autocast, or None for plain float32.
        compile: whether torch.compile turns the network into code of its own.
        world: the processes that train this network together, or None for one alone. Each has a copy of it, and
            backward averages the gradients of all.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: Optional[torch.dtype] = None,
        compile: bool = False,
        world: Optional[World] = None,
    ):
        several = world is not None and world.size > 1  # one of them may have no image of a small batch
        # convolutions read pixels with their channels side by side; state dicts are not affected
        usual = HAS_EMPTY_CHANNELS_LAST or not several
        self._format = torch.channels_last if usual else torch.contiguous_format
        self.network = network.to(device=device, memory_format=self._format)
        self.device, self.dtype = device, dtype
        self._forward = compiled(self.network) if compile else self.network
        self._world = world
        self._folded: Optional[FoldedNetwork] = None
        self._eval_copy: Optional[Embedder] = None
        self._backbone: Optional[Embedder] = None
        if several:
            # statistics of batch norm are equal in all processes, or made so by sync_buffers()
            self._forward = data_parallel(self._forward)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=self._format)
        with _autocast(self.device, self.dtype):
            return self._forward(images)

    def no_sync(self) -> AbstractContextManager:
        """Where forward and backward are both within it, each process keeps the gradients for itself.

        The next forward and backward outside add to them, and average the sums of all processes. Backward alone
        within it exchanges them all the same: forward decides.
        """
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()

    def sync_buffers(self) -> None:
        """Every process takes over the first one's statistics of batch norm."""
        if self._world is not None and self._world.size > 1:
            for buffer in self.network.buffers():
                self._world.broadcast(buffer, 0)

    def train(self, mode: bool = True) -> None:
        self.network.train(mode)

    def eval_copy(self, backbone: bool = False) -> "Embedder":
        """A copy for evaluation, in which each batch norm has become part of the convolution before it.

        The network is left in evaluation mode. The next call brings the copies of earlier ones up to date.

        Args:
            backbone: whether the copy gives what the last layer `fc` takes, scaled to unit length like the output.
        """
        self.network.eval()
        if self._folded is None:
            with torch.inference_mode(False):  # what is made in that mode cannot be changed outside of it
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
        """The network for evaluation, from images (B, 3, S, S) to the activations after each of its stages by name.

        The network is left in evaluation mode.
        """
        plain = plain_copy(self.network.eval())

        def outputs(images: Tensor) -> dict[str, Tensor]:
            with _autocast(self.device, self.dtype):
                return plain.stage_outputs(images.contiguous(memory_format=torch.channels_last))

        return outputs


def _autocast(device: torch.device, dtype: Optional[torch.dtype]) -> AbstractContextManager:
    """The context in which the network runs forward."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
