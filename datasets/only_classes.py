"""Some classes of a labelled data set, as if there were no others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datasets.image_set import UNLABELLED, ImageSet
from datasets.split import Split
from lib.errors import UserError

_NAMED = 20  # classes that an error lists


def only_classes(split: Split, wanted: Sequence[str]) -> Split:
    """The images of the classes named, numbered anew in the order of the data set.

    Args:
        split: the data set.
        wanted: names of classes, or their numbers from 0 where no class has that name; empty: all.

    Raises:
        UserError: there are no labels, or no such class.
    """
    if not wanted:
        return split
    if split.train.labels is None:
        raise UserError(f"--classes: the training images of {split.name} have no labels to choose by; leave it out")
    kept = sorted({_number(name, split.train.classes, split.name) for name in wanted})
    test = split.test
    if test is not None and test.labels is not None:
        test = _only(test, kept)
    return replace(split, train=_only(split.train, kept), test=test)


def _number(name: str, classes: Sequence[str], data_set: str) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    named = ", ".join(classes[:_NAMED]) + (f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else "")
    raise UserError(
        f"--classes {name}: {data_set} has no such class; name them or number them 0 to {len(classes) - 1}: {named}"
    )


def _only(images: ImageSet, kept: Sequence[int]) -> ImageSet:
    # one entry more for images without a label: -1 counts from the end
    new_number = np.full(len(images.classes) + 1, UNLABELLED, dtype=np.int64)
    new_number[list(kept)] = np.arange(len(kept))
    chosen = images.subset(np.flatnonzero(new_number[images.labels] != UNLABELLED))
    return replace(chosen, labels=new_number[chosen.labels], classes=tuple(images.classes[number] for number in kept))
