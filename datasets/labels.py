"""Labels: from the user (`--labels`), of selected classes (`--classes`), and whether they can be evaluated."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import numpy as np

from datasets.files.decode import is_image
from datasets.files.found_files import canonical_name
from datasets.image_set import UNLABELLED, ImageSet, Split
from lib.errors import UserError, one_line

FOLDERS = "folders"

_NAMED = 20  # classes that a message lists
_SAMPLED = 200  # lines of a table that are read to find its dialect
_SAVE = "save it as CSV in UTF-8"
_ONCE = "a pipe can be read only once: pass --labels again, preferably a file, which a resumed run can read again"


def with_labels(split: Split, root: Path, labels: str) -> Split:
    """The data set with labels for its training images.

    Args:
        root: the folder of the images.
        labels: `folders`: an image's class is the folder directly below `root` that it lies in; images beside these
            folders have none. Or the path of a table with two columns, path and label, separated by commas,
            semicolons or tabs, in UTF-8. Its paths start from `root` or are absolute, and are compared as
            `canonical_name` does; a heading in the first line that is not blank is skipped; images that it does not
            name, or names with an empty label, have none.

    Raises:
        UserError: the images are not files, there are fewer than two classes, or the table cannot be read, names a
            path that is not an image of the data set, or contradicts itself.
    """
    paths = split.train.paths
    if paths is None:
        raise UserError(f"--labels {labels}: the images of {split.name} are not files; leave out --labels")
    names = _from_folders(paths, root) if labels == FOLDERS else _from_table(paths, root, labels)
    classes = tuple(sorted(set(filter(None, names))))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise UserError(f"--labels {labels}: at least two different labels are needed, there is {found}")
    number = {name: row for row, name in enumerate(classes)}
    rows = np.array([number.get(name, UNLABELLED) for name in names], dtype=np.int64)
    known = int((rows != UNLABELLED).sum())
    note = f"{known:,} of {len(rows):,} images have one of {len(classes)} labels; labels are for reports only"
    return replace(split, train=replace(split.train, labels=rows, classes=classes), notes=(*split.notes, note))


def _from_folders(paths: Sequence[str], root: Path) -> list[str]:
    below = (os.path.relpath(path, root).split(os.sep) for path in paths)
    return [canonical_name(parts[0]) if len(parts) > 1 else "" for parts in below]


def _from_table(paths: Sequence[str], root: Path, table: str) -> list[str]:
    pictures = _Pictures(paths, root)
    names = [""] * len(paths)
    line_of: dict[int, int] = {}
    for line, path, label in _entries(table, pictures):
        where = f"--labels {table}, line {line}"
        rows = pictures.called(path)
        if not rows:
            encoding = f" (its name holds bytes that are not UTF-8; {_SAVE})" if _not_utf_8(path) else ""
            raise UserError(
                f"{where}: {path.strip()} is not a picture below {root}; paths start there, or are absolute{encoding}"
            )
        if len(rows) > 1:
            raise UserError(f"{where}: {path.strip()} matches {len(rows)} pictures whose names look alike; rename one")
        if _not_utf_8(label):
            raise UserError(f"{where}: the label {label.strip()} is not UTF-8 text; {_SAVE}")
        row, label = rows[0], canonical_name(label.strip())
        if row in line_of and names[row] != label:
            raise UserError(
                f"{where}: {path.strip()} is {label or 'unlabelled'!r} here and {names[row]!r} in line {line_of[row]}; "
                "remove one of the two lines"
            )
        names[row], line_of[row] = label, line
    return names


def _not_utf_8(text: str) -> bool:
    """Whether the text was decoded from bytes that are not UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


class _Pictures:
    """Finds the pictures of a data set by the paths in a table.

    An exact path comes first, then the path without spaces around it, then any path of the same `canonical_name`, also
    with Windows' separators.
    """

    def __init__(self, paths: Sequence[str], root: Path):
        self._root = root
        self._exact: dict[str, int] = {}
        self._alike: dict[str, list[int]] = {}
        for row, path in enumerate(paths):
            whole = os.path.abspath(path)
            self._exact[whole] = row
            self._alike.setdefault(self._loose(whole), []).append(row)

    def called(self, name: str) -> list[int]:
        """The rows of the pictures that a cell of a table may mean, by the first kind of comparison that finds any."""
        for each in dict.fromkeys((name, name.strip())):
            row = self._exact.get(self._absolute(each))
            if row is not None:
                return [row]
        for each in dict.fromkeys((name, name.strip(), name.replace("\\", "/"))):
            rows = self._alike.get(self._loose(self._absolute(each)))
            if rows:
                return rows
        return []

    def _absolute(self, name: str) -> str:
        return os.path.abspath(os.path.join(self._root, os.path.expanduser(name)))

    @staticmethod
    def _loose(path: str) -> str:
        return "/".join(part.strip() for part in canonical_name(path).split("/"))


def _entries(table: str, pictures: _Pictures) -> Iterator[tuple[int, str, str]]:
    """Yields (line, path, label) of each line that has an entry."""
    try:
        # utf-8-sig: spreadsheets write a byte-order mark in front
        # surrogateescape: names of files may hold bytes that are not UTF-8, and --export writes them so
        with open(os.path.expanduser(table), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(
            f"--labels {table}: cannot be read: {error.strerror}; "
            + (_ONCE if _may_be_pipe(table) else "give `folders` or a CSV file of two columns, path and label")
        ) from None
    if not text.strip():
        raise UserError(f"--labels {table}: it is empty" + (f"; {_ONCE}" if _may_be_pipe(table) else ""))
    if "\0" in text:
        raise UserError(f"--labels {table}: it is not UTF-8 text; {_SAVE}")
    dialect = _dialect(text, pictures)
    may_be_heading = True
    for line, cells in _rows(text, dialect, table):
        if not any(map(str.strip, cells)) or (line == 1 and _names_separator(cells)):
            continue
        if len(cells) != 2:
            raise UserError(f"--labels {table}, line {line}: {len(cells)} columns instead of 2")
        if not may_be_heading or is_image(cells[0].strip()):
            yield line, cells[0], cells[1]
        may_be_heading = False


def _may_be_pipe(path: str) -> bool:
    """Whether a path may be that of a closed pipe: a session stores the name that a shell gave to <(...)."""
    return path.startswith(("/dev/", "/proc/"))


def _names_separator(cells: list[str]) -> bool:
    """Whether these cells are Excel's line that names the separator, such as `sep=;`."""
    return cells[0].strip().lower().startswith("sep=") and not any(map(str.strip, cells[1:]))


_Dialect = tuple[str, bool]  # the separator; whether spaces before a quotation mark are ignored


def _dialect(text: str, pictures: _Pictures) -> _Dialect:
    """The dialect of a table: the one in which the first cell names a picture in the most lines.

    A name may hold a comma and a label a semicolon, so the first line alone does not determine it.
    """
    first = text.partition("\n")[0]
    marks = sorted(",;\t", key=lambda mark: mark not in first)
    dialects = [(mark, re.search(rf'(?:^|{mark}) +"', text, re.MULTILINE) is not None) for mark in marks]
    return max(dialects, key=lambda dialect: _fitting(text, dialect, pictures))  # the first of equals


def _fitting(text: str, dialect: _Dialect, pictures: _Pictures) -> tuple[int, int]:
    """How many of the first lines name a picture and a label, and how many have two cells."""
    try:
        cells = [cells for cells in islice(_reader(text, dialect), _SAMPLED) if len(cells) == 2]
    except csv.Error:
        return 0, 0
    return sum(bool(pictures.called(path)) for path, _ in cells), len(cells)


def _reader(text: str, dialect: _Dialect) -> Any:
    mark, skip = dialect
    return csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=skip)


def _rows(text: str, dialect: _Dialect, table: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its last line, from 1."""
    reader = _reader(text, dialect)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"--labels {table}, line {reader.line_num}: {error}") from None


def select_classes(split: Split, wanted: Sequence[str]) -> Split:
    """The images of the classes named, renumbered in the order of the data set.

    Args:
        split: the data set.
        wanted: names of classes, if each of them is one, else their numbers from 0; empty: all. Where some could be
            both, a note says how they were read.

    Raises:
        UserError: there are no labels, no such class, or no training image of it.
    """
    if not wanted:
        return split
    if split.train.labels is None:
        raise UserError(
            f"--classes: the training images of {split.name} have no labels to choose by; leave out --classes"
        )
    numbers, note = _numbers(wanted, split.train.classes, split.name)
    kept = sorted(set(numbers))
    train, test = _only(split.train, kept), split.test
    if len(train) == 0:
        raise UserError(f"--classes {' '.join(wanted)}: {split.name} has no training image of these classes")
    if test is not None and test.labels is not None:
        test = _only(test, kept)
        if len(test) == 0:
            note = [*note, f"--classes {' '.join(wanted)}: no test image is of these classes; there is no test set"]
            test = None
    return replace(split, train=train, test=test, notes=(*split.notes, *note))


def _numbers(wanted: Sequence[str], classes: Sequence[str], data_set: str) -> tuple[list[int], list[str]]:
    """The class number of each word, and a note if the words could be read in another way.

    All are names, or all are numbers: in folders called 1, 2 and 3 the words 0 1 2 are numbers.
    """
    row_of = {canonical_name(name): row for row, name in enumerate(classes)}
    as_names = [row_of.get(canonical_name(word)) for word in wanted]
    as_numbers = [int(word) if word.isdecimal() and int(word) < len(classes) else None for word in wanted]
    names, numbers = _all_or_none(as_names), _all_or_none(as_numbers)
    if names is not None:
        if numbers is None or numbers == names:
            return names, []
        meant = ", ".join(classes[number] for number in numbers)
        return names, [f"--classes {' '.join(wanted)}: taken as names; as numbers, from 0, they would be {meant}"]
    if numbers is not None:
        both = [word for word, name in zip(wanted, as_names) if name is not None]
        if not both:
            return numbers, []
        meant = f"taken as numbers, from 0, for no class is called {wanted[as_names.index(None)]}"
        return numbers, [f"--classes {' '.join(wanted)}: {meant}: {', '.join(classes[number] for number in numbers)}"]
    neither = [word for word, name, number in zip(wanted, as_names, as_numbers) if name is None and number is None]
    strange = neither[0] if neither else wanted[as_names.index(None)]
    shown = ", ".join(classes[:_NAMED]) + (f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else "")
    mixed = " beside the other words" if strange.isdecimal() and int(strange) < len(classes) else ""
    raise UserError(
        f"--classes {strange}: {data_set} has no such class{mixed}; name all or number all from 0 to "
        f"{len(classes) - 1}: {shown}"
    )


def _all_or_none(rows: Sequence[Optional[int]]) -> Optional[list[int]]:
    """The rows as a list if none is missing, else None."""
    found = [row for row in rows if row is not None]
    return found if len(found) == len(rows) else None


def evaluable(train: ImageSet, test: Optional[ImageSet]) -> tuple[ImageSet, Optional[ImageSet], tuple[str, ...]]:
    """Both sets with labels that can be evaluated: labels of a single class are removed (every accuracy is 100 %), and
    so are those of no class, where no image is labelled.

    Returns:
        training images, test images (without labels, `classes` keeps the name of the single class), and lines about
        images that no classifier can recognise: those of a class without another training image.
    """
    if train.labels is None:
        return train, test, ()
    train_counts = np.bincount(train.labels[train.labels >= 0], minlength=len(train.classes))
    if test is None:
        counts = train_counts
    elif test.labels is None:
        return train, test, ()
    else:
        counts = np.bincount(test.labels[test.labels >= 0], minlength=len(train.classes))
    classes = np.flatnonzero(train_counts + counts)
    if len(classes) == 0:
        line = "none of the images has a label, so no accuracy is computed"
        return _without_labels(train), test and _without_labels(test), (line,)
    if len(classes) == 1:
        name = train.classes[classes[0]]
        line = f"one class only ({one_line(name)}): every accuracy would be 100 %, so none is computed"
        return _without_labels(train, name), test and _without_labels(test, name), (line,)
    alone = np.flatnonzero((counts > 0) & (train_counts < (2 if counts is train_counts else 1)))
    if len(alone) == 0:
        return train, test, ()
    shown = ", ".join(one_line(train.classes[row]) for row in alone[:_NAMED])
    shown += f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    kind = "labelled" if counts is train_counts else "test"
    line = (
        f"{int(counts[alone].sum()):,} {kind} images cannot be recognised: the training images hold no "
        f"other image of their class: {shown}"
    )
    return train, test, (line,)


def _without_labels(images: ImageSet, *classes: str) -> ImageSet:
    return replace(images, labels=None, classes=classes)


def _only(images: ImageSet, kept: Sequence[int]) -> ImageSet:
    # one entry more for images without a label: -1 counts from the end
    new_number = np.full(len(images.classes) + 1, UNLABELLED, dtype=np.int64)
    new_number[list(kept)] = np.arange(len(kept))
    chosen = images.subset(np.flatnonzero(new_number[images.labels] != UNLABELLED))
    return replace(chosen, labels=new_number[chosen.labels], classes=tuple(images.classes[number] for number in kept))
