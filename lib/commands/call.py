"""The context of a command: options, start of the run, processes, device, precision, threads and images.

Every process sets up its own; `check_same_call` and `check_same_images` compare them.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

import datasets
from datasets.files.bad_images import Gather
from datasets.image_set import ImageSet, Split
from datasets.pipeline import Pipeline
from lib.commands.start import FromWeights, Resumed, Start
from lib.config import OPTIONS, Options, Settings
from lib.distributed.process_group import is_peer_failure, join
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World, int_digest
from lib.errors import PeerFailure, RunError, UnreadableImage, UserError
from lib.logger.console import LOGGER
from lib.pretrained.fitting import check_complete, fit_lines, load_exactly, load_matching
from lib.pretrained.weights_file import WeightsFile, of_checkpoint
from lib.runtime.determinism import choose_algorithms
from lib.runtime.device import choose_precision
from lib.runtime.memory import is_out_of_memory, keep_freed_memory
from lib.runtime.threads import OtherPrograms
from lib.training.planning import ThreadChoice, set_threads

log = logging.getLogger(LOGGER)

_OF_A_MACHINE = frozenset(
    ["cfgs", "data_root", "sess_dir", "gpus", "threads", "workers_num", "prefetch", "download", "brief", "debug_errors"]
)
"""Options that may differ between machines."""

_FILES = frozenset(["labels", "resume", "pretrained", "export", "embed", "output"])
"""Options that all ranks must have or lack; their paths may differ."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of main.py, ready to compute.

    Attributes:
        settings: the merged options and where each came from.
        start: where the run starts.
        process: this process.
        world: the processes of the run.
        dtype: of autocast, or None for float32.
        threads: the number of PyTorch's threads in this process.
        other_programs: the processor time of other programs since the call began.
    """

    settings: Settings
    start: Start
    process: ProcessInfo
    world: World
    dtype: Optional[torch.dtype]
    threads: ThreadChoice
    other_programs: OtherPrograms

    @property
    def options(self) -> Options:
        """The values of the merged options."""
        return self.settings.options


@contextmanager
def prepared(settings: Settings, start: Start, process: ProcessInfo, world: Optional[World]) -> Iterator[Call]:
    """Context manager that sets device, threads and precision, and checks that all ranks have the same options.

    Args:
        world: the processes of the run if they are joined already.

    Raises:
        UserError, RunError: as the command; exceptions about images, memory and peers are translated to them.
    """
    options, other_programs = settings.options, OtherPrograms()
    choose_algorithms(options.deterministic)
    world = join(options.gpus, process) if world is None else world
    threads = set_threads(settings, world, process)
    keep_freed_memory()
    try:
        dtype = choose_precision(options.precision, world.device)
        check_same_call(world, options, dtype, start)
        torch.backends.cuda.matmul.allow_tf32 = False  # loss, bank and entropies are float32 in any case
        torch.backends.cudnn.allow_tf32 = options.tf32
        yield Call(settings, start, process, world, dtype, threads, other_programs)
    except UnreadableImage as error:
        if options.skip_bad_images:
            raise
        raise UserError(f"{error}, or leave out all such files with --skip-bad-images") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            reason = (str(error).strip().splitlines() or ["no details"])[0]
            raise RunError(
                f"out of memory on {world.device} ({reason}); lower --batch-size, "
                "--discovery-memory, --size or --low-dim, or add --augment-on workers or --no-winograd; --resume "
                "continues from what was saved"
            ) from error
        if world.size == 1 or isinstance(error, MemoryError) or not is_peer_failure(error):
            raise
        raise PeerFailure(f"{str(error).splitlines()[0]} (the process that failed first reports the cause)") from error


def check_same_call(
    world: World,
    options: Options,
    dtype: Optional[torch.dtype],
    start: Start,
) -> None:
    """Check that all ranks have the same options, precision and weights. All ranks must call it.

    Args:
        world: the processes.
        options: merged, of this rank.
        dtype: of autocast, or None: the result of --precision on this rank.
        start: the checkpoint or the weights that this rank has read.

    Raises:
        UserError: they differ; all ranks raise it.
    """
    if world.size == 1:
        return
    values = _shared_values(options)
    own = [int_digest(repr(value).encode()) for value in [*values.values(), dtype]]
    every = world.all_gather_ints([*own, int_digest(_start_digest(start))])
    for rank, gathered in enumerate(every):
        different = [flag for flag, one, other in zip(values, every[0], gathered) if one != other]
        if different:
            raise UserError(
                f"rank {rank} was started with another {', '.join(different)} than rank 0; give all machines the same "
                "options"
            )
        if gathered[len(values)] != every[0][len(values)]:
            raise UserError(
                f"rank {rank} would compute in another precision than rank 0; give all machines --precision fp32, or "
                "bf16 if all have it"
            )
        if gathered != every[0]:
            raise UserError(
                f"rank {rank} has read other weights than rank 0; give all machines the same checkpoint (--resume, "
                "--pretrained)"
            )


def _shared_values(options: Options) -> dict[str, Any]:
    """The option values that must be equal on all ranks, by flag."""
    values = {}
    for option in OPTIONS:
        if option.name not in _OF_A_MACHINE:
            value = getattr(options, option.name)
            values[option.flag] = value is not None if option.name in _FILES else value
    return values


def _start_digest(start: Start) -> bytes:
    """A digest of the weights, the bank and the position that a run starts from."""
    digest = hashlib.blake2b()
    if isinstance(start, Resumed):
        saved = start.checkpoint
        digest.update(repr([saved["round"], saved["epoch"], saved.get("step")]).encode())
        _update(digest, saved["net"])
        _update(digest, saved["npc"])
    if isinstance(start, FromWeights):
        _update(digest, start.file.weights)
        _update(digest, {} if start.file.memory is None else {"memory": start.file.memory})
    return digest.digest()


def _update(digest: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
            digest.update(known.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8))


def load_network(network: nn.Module, options: Options, start: Start) -> WeightsFile:
    """Load a network that is not trained further. A checkpoint must match; other weights need no last layer.

    Returns:
        the file's content, without its memory bank if that cannot hold features of this network.

    Raises:
        UserError: it holds another network.
    """
    if isinstance(start, Resumed):
        load_exactly(network, start.checkpoint["net"], str(start.path))
        return of_checkpoint(start.checkpoint, start.path)
    assert isinstance(start, FromWeights)  # only training starts fresh
    weights = start.file
    fitted = load_matching(network, weights)
    check_complete(fitted, weights, options.network)
    for line in fit_lines(fitted, weights, options.network):
        # --test-only shows only warnings
        log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights    %s", line)
    reason = None
    if fitted.last_is_random:
        log.warning("weights    the last layer (fc) is random: features are a random projection of its input")
        reason = "its rows are not of this last layer"
    elif weights.memory is not None and weights.memory.shape[1] != options.low_dim:
        reason = f"its rows have {weights.memory.shape[1]} values, features {options.low_dim}"
    if weights.memory is None or reason is None:
        return weights
    log.warning("weights    npc.memory is not used: %s", reason)
    return replace(weights, memory=None)


def open_images(options: Options, world: World, process: ProcessInfo) -> Pipeline:
    """The images of a run, checked and ready to be loaded. All processes must call it.

    Raises:
        UserError: as `datasets.load` and `Pipeline`; or the ranks have different images.
        RunError: a DataLoader worker died.
    """
    split = _load(options, world, process)
    if world.size == 1:
        return Pipeline(split, options, world.device)
    gather = None
    if options.skip_bad_images:
        # before the rows of unreadable images are gathered
        check_same_images(world, split.train, split.train.fingerprint(), split.test)
        gather = _gather_without_timeout(world)
    pipeline = Pipeline(split, options, world.device, world.rank, world.size, gather)
    check_same_images(world, pipeline.train, f"{pipeline.fingerprint} {pipeline.contents}", pipeline.test)
    return pipeline


def _gather_without_timeout(world: World) -> Gather:
    """`World.gather_rows` of CPU tensors, for processes that finish hours apart."""

    def gather(rows: Tensor) -> Tensor:
        world.long_barrier()
        return world.gather_rows(rows.to(world.device)).cpu()

    return gather


def _load(options: Options, world: World, process: ProcessInfo) -> Split:
    """The data set; with --download the first process of each machine downloads it while all others wait."""
    name, root, labels = options.dataset, options.data_root, options.labels
    if world.size == 1 or not any(wanted for [wanted] in world.all_gather_ints([int(options.download)])):
        return datasets.load(name, root, options.download, labels)
    if process.local_rank > 0:
        world.long_barrier()
        return datasets.load(name, root, False, labels)
    split = datasets.load(name, root, options.download, labels)
    world.long_barrier()
    return split


def check_same_images(world: World, train: ImageSet, fingerprint: str, test: Optional[ImageSet]) -> None:
    """Check that all ranks have the same images and labels. Otherwise they would take different numbers of steps.

    Args:
        train: the training images.
        fingerprint: of the training images, see `ImageSet.fingerprint`.
        test: the test images, or None.

    Raises:
        UserError: they differ; all ranks raise it.
    """
    tests = (0, 0) if test is None else (len(test), int_digest(test.fingerprint().encode()))
    images = world.all_gather_ints([len(train), int_digest(fingerprint.encode()), *tests])
    others = [rank for rank, gathered in enumerate(images) if gathered != images[0]]
    if others:
        counts = [(rank, images[rank][0], images[rank][2]) for rank in [0, *others]]
        found = ", ".join(f"rank {rank}: {trains:,} training, {tests:,} test" for rank, trains, tests in counts)
        raise UserError(
            f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} found other images than rank 0 "
            f"({found}); all processes need the same files below --data-root"
        )
    labels = world.all_gather_ints([int_digest(_labels(train, test))])
    others = [rank for rank, gathered in enumerate(labels) if gathered != labels[0]]
    if others:
        raise UserError(
            f"rank {others[0]} found other labels than rank 0; all processes need the same (--labels, or the folders "
            "below --data-root)"
        )


def _labels(*sets: Optional[ImageSet]) -> bytes:
    """A digest of labels and class names."""
    digest = hashlib.blake2b()
    for each in sets:
        if each is not None:
            digest.update(repr((each.classes, each.labels is None)).encode())
            digest.update(b"" if each.labels is None else each.labels.tobytes())
    return digest.digest()
