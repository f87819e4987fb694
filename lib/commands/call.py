"""What a command computes with: options, start, processes, device, precision, threads and images.

Every process of a run finds its own, and all must be the same.
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
from datasets.image_set import ImageSet
from datasets.pipeline import Pipeline
from datasets.split import Split
from lib.commands.start import FromWeights, Resumed, Start
from lib.config import OPTIONS, Options, Settings
from lib.distributed.process_group import is_peer_failure, join
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World, int_digest
from lib.errors import PeerFailure, RunError, UnreadableImage, UserError
from lib.logger.console import LOGGER
from lib.pretrained.fitting import complete, fit, load_exactly, report
from lib.pretrained.weights_file import WeightsFile, of_checkpoint
from lib.runtime.determinism import choose_algorithms
from lib.runtime.device import choose_precision
from lib.runtime.memory import is_out_of_memory, keep_freed_memory
from lib.runtime.threads import OtherPrograms
from lib.training.planning import Choice, set_threads

log = logging.getLogger(LOGGER)

_OF_A_MACHINE = frozenset(
    ["cfgs", "data_root", "sess_dir", "gpus", "threads", "workers_num", "prefetch", "download", "brief", "debug_errors"]
)
"""Options that may differ from machine to machine."""

_FILES = frozenset(["labels", "resume", "pretrained", "export", "embed", "output"])
"""Options that all or none must be given; where the files lie may differ."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of main.py, ready to compute.

    Attributes:
        settings: the merged options and where each came from.
        start: where the run starts.
        process: this process.
        world: the processes of the run.
        dtype: of autocast, or None for float32.
        threads: of PyTorch in this process.
        other_programs: their processor time since the call began.
    """

    settings: Settings
    start: Start
    process: ProcessInfo
    world: World
    dtype: Optional[torch.dtype]
    threads: Choice
    other_programs: OtherPrograms

    @property
    def options(self) -> Options:
        """The values of the merged options."""
        return self.settings.options


@contextmanager
def prepared(settings: Settings, start: Start, process: ProcessInfo, world: Optional[World]) -> Iterator[Call]:
    """Within it a command computes: device, threads and precision are set, and all processes were asked for the same.

    Args:
        world: the processes of the run if they are joined already.

    Raises:
        UserError, RunError: as the command; an unreadable image, out of memory and a lost process in the user's words.
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
            reason = (str(error).strip().splitlines() or ["nothing more is known"])[0]
            raise RunError(
                f"out of memory on {world.device} ({reason}); lower --batch-size, "
                "--discovery-memory, --size or --low-dim, or add --augment-on workers or --no-winograd; what was saved "
                "goes on with --resume"
            ) from error
        if world.size == 1 or isinstance(error, MemoryError) or not is_peer_failure(error):
            raise
        raise PeerFailure(f"{str(error).splitlines()[0]} (what another process says comes first)") from error


def check_same_call(
    world: World,
    options: Options,
    dtype: Optional[torch.dtype],
    start: Start,
) -> None:
    """Whether options, precision and weights are the same in all processes. All must call it.

    Args:
        world: the processes.
        options: merged, of this one.
        dtype: of autocast, or None: what --precision has come to here.
        start: with what this one has read for --resume or --pretrained.

    Raises:
        UserError: some have others; all processes raise it.
    """
    if world.size == 1:
        return
    asked = _asked(options)
    own = [int_digest(repr(value).encode()) for value in [*asked.values(), dtype]]
    every = world.all_gather_ints([*own, int_digest(_read(start))])
    for rank, heard in enumerate(every):
        different = [flag for flag, one, other in zip(asked, every[0], heard) if one != other]
        if different:
            raise UserError(
                f"rank {rank} was started with another {', '.join(different)} than rank 0; give all machines the same "
                "options"
            )
        if heard[len(asked)] != every[0][len(asked)]:
            raise UserError(
                f"rank {rank} would compute in another precision than rank 0; give all machines --precision fp32, or "
                "bf16 if all have it"
            )
        if heard != every[0]:
            raise UserError(
                f"rank {rank} has read other weights than rank 0; give all machines the same checkpoint (--resume, "
                "--pretrained)"
            )


def _asked(options: Options) -> dict[str, Any]:
    """What must be the same, by the flags of the options."""
    asked = {}
    for option in OPTIONS:
        if option.name not in _OF_A_MACHINE:
            value = getattr(options, option.name)
            asked[option.flag] = value is not None if option.name in _FILES else value
    return asked


def _read(start: Start) -> bytes:
    """A digest of the weights and the bank that a run starts from, and of where in the run they are."""
    digest = hashlib.blake2b()
    if isinstance(start, Resumed):
        saved = start.checkpoint
        digest.update(repr([saved["round"], saved["epoch"], saved.get("step")]).encode())
        _add(digest, saved["net"])
        _add(digest, saved["npc"])
    if isinstance(start, FromWeights):
        _add(digest, start.file.weights)
        _add(digest, {} if start.file.memory is None else {"memory": start.file.memory})
    return digest.digest()


def _add(digest: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy does not know
            digest.update(known.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8))


def load_network(network: nn.Module, options: Options, start: Start) -> WeightsFile:
    """Load a network that is used as it is: exactly from a checkpoint, or from weights that may lack the last layer.

    Returns:
        what the file holds; without its memory bank where that cannot be of this network's features.

    Raises:
        UserError: it holds another network.
    """
    if isinstance(start, Resumed):
        load_exactly(network, start.checkpoint["net"], str(start.path))
        return of_checkpoint(start.checkpoint, start.path)
    weights = start.file
    fitted = fit(network, weights)
    complete(fitted, weights, options.network)
    for line in report(fitted, weights, options.network):
        # as warnings where something is not as one would think; --test-only shows no others
        log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights    %s", line)
    reason = None
    if fitted.last_is_random:
        log.warning("weights    the last layer (fc) is random: a feature is a random projection of what comes before")
        reason = "its rows are not of this last layer"
    elif weights.memory is not None and weights.memory.shape[1] != options.low_dim:
        reason = f"its rows have {weights.memory.shape[1]} values, features {options.low_dim}"
    if weights.memory is None or reason is None:
        return weights
    log.warning("weights    npc.memory is not used: %s", reason)
    return replace(weights, memory=None)


def open_images(options: Options, world: World, place: ProcessInfo) -> Pipeline:
    """Look the data set through and make it ready to be served. All processes must call it.

    Raises:
        UserError: as `datasets.load` and `Pipeline`; or the processes have not found the same images.
        RunError: a process that reads images died.
    """
    split = _load(options, world, place)
    if world.size == 1:
        return Pipeline(split, options, world.device)
    gather = None
    if options.skip_bad_images:
        check_same(world, split.train, split.train.fingerprint(), split.test)  # what is told goes by their rows
        gather = _patient_gather(world)
    pipeline = Pipeline(split, options, world.device, world.rank, world.size, gather)
    check_same(world, pipeline.train, f"{pipeline.fingerprint} {pipeline.contents}", pipeline.test)
    return pipeline


def _patient_gather(world: World) -> Gather:
    """`World.gather_rows` of the CPU's tensors, for processes that are done hours apart."""

    def gather(rows: Tensor) -> Tensor:
        world.long_barrier()
        return world.gather_rows(rows.to(world.device)).cpu()

    return gather


def _load(options: Options, world: World, place: ProcessInfo) -> Split:
    """The data set; what is missing is fetched by the first process of each machine, while the others wait.

    With --download on one machine alone those of the others wait as well.
    """
    name, root, labels = options.dataset, options.data_root, options.labels
    if world.size == 1 or not any(wanted for [wanted] in world.all_gather_ints([int(options.download)])):
        return datasets.load(name, root, options.download, labels)
    if place.local_rank > 0:
        world.long_barrier()
        return datasets.load(name, root, False, labels)
    split = datasets.load(name, root, options.download, labels)
    world.long_barrier()
    return split


def check_same(world: World, train: ImageSet, fingerprint: str, test: Optional[ImageSet]) -> None:
    """Whether all processes have the same images and labels. They would wait for one another in vain if they had not.

    Args:
        train: the training images.
        fingerprint: theirs, as `ImageSet.fingerprint`.
        test: the test images, or None.

    Raises:
        UserError: some have others; all processes raise it.
    """
    tests = (0, 0) if test is None else (len(test), int_digest(test.fingerprint().encode()))
    images = world.all_gather_ints([len(train), int_digest(fingerprint.encode()), *tests])
    others = [rank for rank, heard in enumerate(images) if heard != images[0]]
    if others:
        counts = [(rank, images[rank][0], images[rank][2]) for rank in [0, *others]]
        found = ", ".join(f"rank {rank}: {trains:,} training, {tests:,} test" for rank, trains, tests in counts)
        raise UserError(
            f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} found other images than rank 0 "
            f"({found}); all processes need the same files below --data-root"
        )
    labels = world.all_gather_ints([int_digest(_labels(train, test))])
    others = [rank for rank, heard in enumerate(labels) if heard != labels[0]]
    if others:
        raise UserError(
            f"rank {others[0]} found other labels than rank 0; all processes need the same (--labels, or the folders "
            "below --data-root)"
        )


def _labels(*sets: Optional[ImageSet]) -> bytes:
    """A digest of labels and names of classes."""
    digest = hashlib.blake2b()
    for each in sets:
        if each is not None:
            digest.update(repr((each.classes, each.labels is None)).encode())
            digest.update(b"" if each.labels is None else each.labels.tobytes())
    return digest.digest()
