"""CSV tables whose texts may be any file names."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_table(path: Path, columns: Mapping[str, Sequence]) -> None:
    """A line of names, then one line a row, in UTF-8.

    Texts stand in quotes, numbers do not; None is an empty text. So a line break in a text is kept, and a text of
    digits is told from a number. Names of files that are not UTF-8 are written byte for byte: Python gets them back
    with `errors="surrogateescape"`.

    Args:
        columns: the values of each column by its name, all of one length.
    """
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of such a table, all values as text."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
