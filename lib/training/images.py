"""The images of a run, found by each of its processes for itself, and the same in all."""

import hashlib
from typing import Optional

from torch import Tensor

import datasets
from datasets.files.bad_images import Gather
from datasets.image_set import ImageSet
from datasets.pipeline import Pipeline
from datasets.split import Split
from lib.config import Options
from lib.distributed.process_info import Place
from lib.distributed.world import World, number_of
from lib.errors import UserError


def open_images(options: Options, world: World, place: Place) -> Pipeline:
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
        world.wait_for_all()
        return world.gather_rows(rows.to(world.device)).cpu()

    return gather


def _load(options: Options, world: World, place: Place) -> Split:
    """The data set; what is missing is fetched by the first process of each machine, while the others wait.

    With --download on one machine alone those of the others wait as well.
    """
    name, root, labels = options.dataset, options.data_root, options.labels
    if world.size == 1 or not any(wanted for [wanted] in world.hear_all([int(options.download)])):
        return datasets.load(name, root, options.download, labels)
    if place.local_rank > 0:
        world.wait_for_all()
        return datasets.load(name, root, False, labels)
    split = datasets.load(name, root, options.download, labels)
    world.wait_for_all()
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
    tests = (0, 0) if test is None else (len(test), number_of(test.fingerprint().encode()))
    images = world.hear_all([len(train), number_of(fingerprint.encode()), *tests])
    others = [rank for rank, heard in enumerate(images) if heard != images[0]]
    if others:
        counts = [(rank, images[rank][0], images[rank][2]) for rank in [0, *others]]
        found = ", ".join(f"rank {rank}: {trains:,} training, {tests:,} test" for rank, trains, tests in counts)
        raise UserError(
            f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} found other images than rank 0 "
            f"({found}); all processes need the same files below --data-root"
        )
    labels = world.hear_all([number_of(_labels(train, test))])
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
