"""The first rows of the memory bank: random, from a file, or features of the training images."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.baselines import PixelRows
from lib.evaluation.features import extract
from lib.method.memory_bank import MemoryBank
from lib.nn.embedder import Embedder
from lib.pretrained.weights_file import WeightsFile

RECOGNITION_IMAGES = 256
"""Training images on which a bank of unknown origin is tested."""
RECOGNISED = 0.75
"""Share of pairs (its own row, another row) in which its own must be nearer to an image. Chance gives 1/2."""

FITTED_IMAGES = 1_000
FITTED_PIXELS = FITTED_IMAGES * 64**2
"""The most training images, and pixels in them, to which an untrained network is fitted."""


def images_to_fit(pipeline: Pipeline, size: int) -> Tensor:
    """(n, 3, S, S) training images to which whitenet's first filters and batch norm's statistics are fitted.

    They go through the network as one batch, so that large images are fewer. `size` is S.
    """
    return pipeline.sample(min(FITTED_IMAGES, max(16, FITTED_PIXELS // size**2)))


@torch.no_grad()
def fit_batch_norm(embedder: Embedder, images: Tensor) -> None:
    """Set the statistics of batch norm to those of images (n, 3, S, S).

    With the initial ones, 0 and 1, the features of an untrained deep network are all alike.
    """
    norms = [layer for layer in embedder.network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches; here there is one
    embedder.train()
    embedder(images.to(embedder.device))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()


def start_bank(
    bank: MemoryBank,
    options: Options,
    file: Optional[WeightsFile],
    embedder: Embedder,
    pipeline: Pipeline,
    pixels: Optional[PixelRows] = None,
) -> Optional[str]:
    """Fill the memory bank of a new run. All processes must call it; each fills its own rows.

    With --pretrained the rows are the file's bank if it belongs to these training images. They are the network's
    features of the training images, preprocessed as test images, for --pretrained without such a bank (random rows
    would spoil a trained network in its first steps), for --bank-init features, and without round 0, since round 1
    discovers its anchors in them. Otherwise they stay random.

    Args:
        pixels: copies the pixels of the training images from the pass that fills the rows, which saves the baselines
            another pass; or None.

    Returns:
        a line for the log: what was done, and why; None if the rows stay random.
    """
    whose, reason = "untrained network's", ""
    if file is not None:
        against = _reason_against(bank, file, embedder, pipeline)
        if against is None:
            assert file.memory is not None  # otherwise `_reason_against` names a reason
            bank.load_whole(F.normalize(file.memory.float(), dim=1))
            return f"memory bank taken from the file ({len(bank):,} rows)"
        whose, reason = "network's", f": {against}"
    elif options.bank_init == "random" and options.first_round == 0:
        return None
    else:
        sample = images_to_fit(pipeline, options.size)
        # synchronised batch norm adds up the processes' parts; without it each process needs all images
        fit_batch_norm(embedder, sample[bank.shard.world.rows(len(sample))] if options.sync_bn else sample)
    rows = bank.shard.world.rows(len(bank))
    plain = pipeline.train_batches_plain()
    batches = plain if pixels is None else pixels.copied(plain)
    bank.memory.copy_(extract(embedder, batches, rows, bank.memory.shape[1]))
    return f"memory bank filled with the {whose} features of the training images{reason}"


def _reason_against(bank: MemoryBank, file: WeightsFile, embedder: Embedder, pipeline: Pipeline) -> Optional[str]:
    """Why the file's bank cannot be used, or None."""
    if file.memory is None:
        return "the file has none"
    expected = (len(bank), bank.memory.shape[1])
    if tuple(file.memory.shape) != expected:
        return f"npc.memory is {_shape(file.memory.shape)} in the file, {_shape(expected)} here"
    if file.fingerprint is not None:
        same = pipeline.are_those_of(file.fingerprint, file.contents)
        return None if same else "the file's bank belongs to other training images"
    share = _recognition(embedder, pipeline, file.memory, bank.shard.world)
    if share < RECOGNISED:
        return (
            "the file's rows belong to other images or to another order of them (a row is nearer to its image than "
            f"another row is in {100 * share:.0f} % of pairs; chance gives 50 %)"
        )
    return None


@torch.inference_mode()
def _recognition(embedder: Embedder, pipeline: Pipeline, memory: Tensor, world: World) -> float:
    """The share of pairs (own row, another row) of sampled training images in which the own row is nearer to the image.

    Over all processes.
    """
    frozen = embedder.eval_copy()
    features, indices = [], []
    batches = pipeline.train_batches_plain()
    for images, rows in batches:
        features.append(frozen(images).cpu())
        indices.append(rows.cpu())
        if sum(map(len, indices)) >= RECOGNITION_IMAGES:
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
