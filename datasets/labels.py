"""`--labels`: what a person knows about some or all of their pictures. For reports only; nothing is learnt from it."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.image_file import is_image
from datasets.image_set import UNLABELLED, ImageSet
from datasets.split import Split
from lib.errors import UserError

FOLDERS = "folders"


def with_labels(split: Split, root: Path, labels: str) -> Split:
    """The data set with labels for its training images.

    Args:
        root: the folder of the images.
        labels: `folders`: an image's class is the folder directly below `root` that it lies in; images beside these
            folders have none. Or the path of a table with two columns, path and label, separated by commas,
            semicolons or tabs. Its paths start from `root` or are absolute; a first line that is a heading is passed
            over; images that it does not name, or names with an empty label, have none.

    Raises:
        UserError: there are fewer than two classes, or the table cannot be read, names what is no image of the data
            set, or contradicts itself.
    """
    names = _from_folders(split.train, root) if labels == FOLDERS else _from_table(split.train, root, labels)
    classes = tuple(sorted(set(filter(None, names))))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise UserError(f"--labels {labels}: at least two different labels are needed, there is {found}")
    number = {name: row for row, name in enumerate(classes)}
    rows = np.array([number.get(name, UNLABELLED) for name in names], dtype=np.int64)
    known = int((rows != UNLABELLED).sum())
    note = f"{known:,} of {len(rows):,} images have one of {len(classes)} labels; labels are for reports only"
    return replace(split, train=replace(split.train, labels=rows, classes=classes), notes=(*split.notes, note))


def _from_folders(images: ImageSet, root: Path) -> list[str]:
    below = (os.path.relpath(path, root).split(os.sep) for path in images.paths)
    return [parts[0] if len(parts) > 1 else "" for parts in below]


def _from_table(images: ImageSet, root: Path, table: str) -> list[str]:
    row_of = {os.path.abspath(path): row for row, path in enumerate(images.paths)}
    names = [""] * len(images)
    line_of: dict[int, int] = {}
    for line, path, label in _entries(table):
        row = row_of.get(os.path.abspath(os.path.join(root, os.path.expanduser(path))))
        if row is None:
            raise UserError(
                f"--labels {table}, line {line}: {path} is no picture below {root}; paths start from there, "
                "or are absolute"
            )
        if row in line_of and names[row] != label:
            raise UserError(
                f"--labels {table}, line {line}: {path} is {label or 'unlabelled'!r} here and {names[row]!r} in line "
                f"{line_of[row]}"
            )
        names[row], line_of[row] = label, line
    return names


def _entries(table: str) -> Iterator[tuple[int, str, str]]:
    """(line, path, label) of each line that says something."""
    try:
        # utf-8-sig: spreadsheets write a byte-order mark in front
        # surrogateescape: names of files may hold bytes that are no UTF-8, and --export writes them so
        with open(os.path.expanduser(table), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(
            f"--labels {table}: cannot be read: {error.strerror}; give `folders` or a CSV file of two columns, path "
            "and label"
        ) from None
    if "\0" in text:
        raise UserError(f"--labels {table}: it is not UTF-8 text; save it as CSV in UTF-8")
    first = text.partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for cells in _rows(reader, table):
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != 2:
            raise UserError(f"--labels {table}, line {reader.line_num}: {len(cells)} columns where there should be 2")
        path, label = map(str.strip, cells)
        if reader.line_num > 1 or is_image(path):
            yield reader.line_num, path, label


def _rows(reader: Any, table: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"--labels {table}, line {reader.line_num}: {error}") from None
