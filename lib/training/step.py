"""One training step: forward, loss, backward, bank, optimiser."""

from contextlib import nullcontext

from torch import Tensor
from torch.optim import Optimizer

from lib.method.global_batch import GlobalBatch
from lib.method.memory_bank import MemoryBank
from lib.method.tiled_loss import tiled_and_loss
from lib.nn.embedder import Embedder
from lib.training.finite import FiniteWatch


class Step:
    """Trains on one batch at a call. With one process nothing in it waits for the device.

    With several processes each brings its share of the batch, and all take the same step. On GPUs they wait where
    they exchange sizes: PyTorch's synchronised batch norm does in each layer, the bank once.

    Args:
        embedder: the network.
        bank: the memory bank, updated in place.
        optimizer: of the network's parameters.
        temperature: tau.

    Attributes:
        watch: sees the loss and the gradients of every batch.
    """

    def __init__(self, embedder: Embedder, bank: MemoryBank, optimizer: Optimizer, temperature: float):
        self.embedder, self.bank, self.optimizer, self.temperature = embedder, bank, optimizer, temperature
        self.watch = FiniteWatch(bank.memory.device)

    def __call__(
        self, images: Tensor, members: Tensor, size: int, share: float = 1.0, first: bool = True, last: bool = True
    ) -> Tensor:
        """Learn from a batch.

        Args:
            images: (B, 3, S, S), members: (B, 1 + K) sets that begin with the image's own row, as
                `Neighbourhoods.members` gives them; with several processes those of this one.
            size: of the batch, in all processes together.
            share: of the batch in the gradient, where several batches make one optimiser step.
            first, last: whether the batch begins and ends such a group.

        Returns:
            the mean loss of the batch, a scalar on the device.
        """
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        shard = self.bank.shard
        with nullcontext() if last else self.embedder.apart():
            features = self.embedder(images)  # (B, D)
            batch = GlobalBatch.gather(features, members, shard.world, shard.world.shares(size))
            loss = tiled_and_loss(features, self.bank.memory, members, self.temperature, shard=shard, batch=batch)
            (loss if share == 1.0 else loss * share).backward()
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        self.watch.see(loss.detach(), [p.grad for p in parameters if p.grad is not None] if last else ())
        self.bank.update(batch.indices, batch.features)
        if last:
            self.optimizer.step()
        return loss.detach()
