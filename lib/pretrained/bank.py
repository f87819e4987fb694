"""The memory bank that a run starts with where its rows are not random."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.features import extract
from lib.method.memory_bank import MemoryBank
from lib.nn.embedder import Embedder
from lib.pretrained.weights_file import WeightsFile

SAMPLE = 256
"""Training images that a bank of unknown origin is tried on."""
RECOGNISED = 0.75
"""Share of pairs (own row, another's row) in which the own one must be nearer; 1/2 is what chance gives."""


STATISTICS = 1_000
"""Training images that an untrained network's batch norms take their statistics from."""


@torch.no_grad()
def fit_batch_norm(embedder: Embedder, images: Tensor) -> None:
    """Give an untrained network the statistics of these images (n, 3, S, S) for evaluation: with those that it is built
    with, 0 and 1, deep features are all alike."""
    norms = [layer for layer in embedder.network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
    embedder.train()
    embedder(images.to(embedder.device))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()


def start_bank(
    bank: MemoryBank, options: Options, file: Optional[WeightsFile], embedder: Embedder, pipeline: Pipeline
) -> Optional[str]:
    """Fill the bank of a new run, where its rows do not stay random.

    Of --pretrained the file's bank is taken if it is of these images. Else every row becomes the network's feature of
    its training image, prepared as test images are: for a file that has no such bank, since random rows would pull a
    trained network apart in its first steps; for --bank-init features; and for a run without round 0, which discovers
    its first anchors in these rows. All processes must call it; each computes its own rows.

    Returns:
        a line for the log: what was done, and why; None if the rows stay random.
    """
    whose, reason = "untrained network's", ""
    if file is not None:
        against = _reason_against(bank, file, embedder, pipeline)
        if against is None:
            bank.load_whole(F.normalize(file.memory.float(), dim=1))
            return f"memory bank taken from the file ({len(bank):,} rows)"
        whose, reason = "network's", f": {against}"
    elif options.bank_init == "random" and options.first_round == 0:
        return None
    else:
        sample = pipeline.sample(STATISTICS)
        # batch norm over all processes adds up what each of them has; alone each needs all
        fit_batch_norm(embedder, sample[bank.shard.world.rows(len(sample))] if options.sync_bn else sample)
    rows = bank.shard.world.rows(len(bank))
    bank.memory.copy_(extract(embedder, pipeline.train_batches_plain(), rows, bank.memory.shape[1]))
    return f"memory bank filled with the {whose} features of the training images{reason}"


def _reason_against(bank: MemoryBank, file: WeightsFile, embedder: Embedder, pipeline: Pipeline) -> Optional[str]:
    """Why the file's bank is not taken, or None."""
    if file.memory is None:
        return "the file has none"
    expected = (len(bank), bank.memory.shape[1])
    if tuple(file.memory.shape) != expected:
        return f"npc.memory is {_shape(file.memory.shape)} in the file, {_shape(expected)} here"
    if file.fingerprint is not None:
        same = pipeline.are_those_of(file.fingerprint, file.contents)
        return None if same else "the file's belongs to other training images"
    share = _recognition(embedder, pipeline, file.memory, bank.shard.world)
    if share < RECOGNISED:
        return (
            "the file's rows belong to other images or to another order of them (a row is nearer to its image than "
            f"another row is in {100 * share:.0f} % of pairs; chance gives 50 %)"
        )
    return None


@torch.inference_mode()
def _recognition(embedder: Embedder, pipeline: Pipeline, memory: Tensor, world: World) -> float:
    """How well some training images are nearer to their own row than to each other's, over all processes."""
    frozen = embedder.eval_copy()
    features, indices = [], []
    batches = pipeline.train_batches_plain()
    for images, rows in batches:
        features.append(frozen(images).cpu())
        indices.append(rows.cpu())
        if sum(map(len, indices)) >= SAMPLE:
            break
    batches.close()
    counts = torch.zeros(2, dtype=torch.float64)
    if indices:
        rows = F.normalize(memory[torch.cat(indices)].float(), dim=1)
        similarities = torch.cat(features).float() @ rows.t()  # (S, S)
        own = similarities.diagonal()[:, None]
        others = len(rows) * (len(rows) - 1)
        counts += torch.tensor([(own > similarities).sum().item(), others], dtype=torch.float64)
    nearer, pairs = world.all_reduce_sum(counts.to(world.device)).tolist()
    return nearer / max(pairs, 1)


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
