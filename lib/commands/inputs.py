"""The inputs of a run, options and images: every process finds its own, and all must be the same."""

import hashlib
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

import datasets
from datasets.files.bad_images import Gather
from datasets.image_set import ImageSet
from datasets.pipeline import Pipeline
from datasets.split import Split
from lib.config import OPTIONS, Options
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World, int_digest
from lib.errors import UserError
from lib.pretrained.weights_file import WeightsFile

_OF_A_MACHINE = frozenset(
    ["cfgs", "data_root", "sess_dir", "gpus", "threads", "workers_num", "prefetch", "download", "brief", "debug_errors"]
)
"""Options that may differ from machine to machine."""

_FILES = frozenset(["labels", "resume", "pretrained", "export", "embed", "output"])
"""Options that all or none must be given; where the files lie may differ."""


def check_same_call(
    world: World,
    options: Options,
    dtype: Optional[torch.dtype],
    saved: Optional[dict[str, Any]],
    weights: Optional[WeightsFile],
) -> None:
    """Whether options, precision and weights are the same in all processes. All must call it.

    Args:
        world: the processes.
        options: merged, of this one.
        dtype: of autocast, or None: what --precision has come to here.
        saved: the checkpoint that this one has read, or None.
        weights: what it has read for --pretrained, or None.

    Raises:
        UserError: some have others; all processes raise it.
    """
    if world.size == 1:
        return
    asked = _asked(options)
    own = [int_digest(repr(value).encode()) for value in [*asked.values(), dtype]]
    every = world.all_gather_ints([*own, int_digest(_read(saved, weights))])
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


def _read(saved: Optional[dict[str, Any]], weights: Optional[WeightsFile]) -> bytes:
    """A digest of the weights and the bank, and of where in the run they are."""
    digest = hashlib.blake2b()
    if saved is not None:
        digest.update(repr([saved["round"], saved["epoch"], saved.get("step")]).encode())
        _add(digest, saved["net"])
        _add(digest, saved["npc"])
    if weights is not None:
        _add(digest, weights.weights)
        _add(digest, {} if weights.memory is None else {"memory": weights.memory})
    return digest.digest()


def _add(digest: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy does not know
            digest.update(known.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8))


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
