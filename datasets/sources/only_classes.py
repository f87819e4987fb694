"""Some classes of a labelled data set, as if there were no others; and what labels can judge."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import numpy as np

from datasets.files.paths import same_name
from datasets.image_set import UNLABELLED, ImageSet
from datasets.split import Split
from lib.errors import UserError, one_line

_NAMED = 20  # classes that an error lists


def only_classes(split: Split, wanted: Sequence[str]) -> Split:
    """The images of the classes named, numbered anew in the order of the data set.

    Args:
        split: the data set.
        wanted: names of classes if each of them is one, else their numbers from 0; empty: all. A note says which of
            the two was taken where some could be both.

    Raises:
        UserError: there are no labels, or no such class.
    """
    if not wanted:
        return split
    if split.train.labels is None:
        raise UserError(f"--classes: the training images of {split.name} have no labels to choose by; leave it out")
    numbers, note = _numbers(wanted, split.train.classes, split.name)
    kept = sorted(set(numbers))
    test = split.test
    if test is not None and test.labels is not None:
        test = _only(test, kept)
    return replace(split, train=_only(split.train, kept), test=test, notes=(*split.notes, *note))


def _numbers(wanted: Sequence[str], classes: Sequence[str], data_set: str) -> tuple[list[int], list[str]]:
    """The number of each word, and a note if all words could be read in another way.

    All are names, or all are numbers: in folders called 1, 2 and 3 the words 0 1 2 are numbers.
    """
    row_of = {same_name(name): row for row, name in enumerate(classes)}
    names = [row_of.get(same_name(word)) for word in wanted]
    numbers = [int(word) if word.isdecimal() and int(word) < len(classes) else None for word in wanted]
    if None not in names:
        if None in numbers or numbers == names:
            return names, []
        meant = ", ".join(classes[number] for number in numbers)
        return names, [f"--classes {' '.join(wanted)}: taken as names; as numbers, from 0, they would be {meant}"]
    if None not in numbers:
        both = [word for word, name in zip(wanted, names) if name is not None]
        if not both:
            return numbers, []
        meant = f"taken as numbers, from 0, for no class is called {wanted[names.index(None)]}"
        return numbers, [f"--classes {' '.join(wanted)}: {meant}: {', '.join(classes[number] for number in numbers)}"]
    neither = [word for word, name, number in zip(wanted, names, numbers) if name is None and number is None]
    strange = neither[0] if neither else wanted[names.index(None)]
    shown = ", ".join(classes[:_NAMED]) + (f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else "")
    mixed = " beside the other words" if strange.isdecimal() and int(strange) < len(classes) else ""
    raise UserError(
        f"--classes {strange}: {data_set} has no such class{mixed}; name all or number all from 0 to "
        f"{len(classes) - 1}: {shown}"
    )


def judgeable(train: ImageSet, test: Optional[ImageSet]) -> tuple[ImageSet, Optional[ImageSet], tuple[str, ...]]:
    """Both sets, without their labels if all of them are the same, since every accuracy would be 100 %.

    Returns:
        training images, test images (where labels are left out, the name of their one class stays), and lines about
        images for which no vote can be right: those of a class without another training image.
    """
    if train.labels is None:
        return train, test, ()
    learnt = np.bincount(train.labels[train.labels >= 0], minlength=len(train.classes))
    if test is not None and test.labels is None:
        return train, test, ()
    judged = learnt if test is None else np.bincount(test.labels[test.labels >= 0], minlength=len(train.classes))
    classes = np.flatnonzero(learnt + judged)
    if len(classes) == 1:
        name = train.classes[classes[0]]
        line = f"one class only ({one_line(name)}): every accuracy would be 100 %, so none is computed"
        return _without_labels(train, name), test and _without_labels(test, name), (line,)
    alone = np.flatnonzero((judged > 0) & (learnt < (2 if judged is learnt else 1)))
    if len(alone) == 0:
        return train, test, ()
    shown = ", ".join(one_line(train.classes[row]) for row in alone[:_NAMED])
    shown += f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    kind = "labelled" if judged is learnt else "test"
    line = (
        f"{int(judged[alone].sum()):,} {kind} images cannot be recognised, for no other image of their class is there "
        f"to learn from: {shown}"
    )
    return train, test, (line,)


def _without_labels(images: ImageSet, name: str) -> ImageSet:
    return replace(images, labels=None, classes=(name,))


def _only(images: ImageSet, kept: Sequence[int]) -> ImageSet:
    # one entry more for images without a label: -1 counts from the end
    new_number = np.full(len(images.classes) + 1, UNLABELLED, dtype=np.int64)
    new_number[list(kept)] = np.arange(len(kept))
    chosen = images.subset(np.flatnonzero(new_number[images.labels] != UNLABELLED))
    return replace(chosen, labels=new_number[chosen.labels], classes=tuple(images.classes[number] for number in kept))
