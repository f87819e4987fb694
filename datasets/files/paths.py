"""Many paths in little memory."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Union

import numpy as np


def same_name(name: str) -> str:
    """One spelling for names that look alike: systems write é as one letter or as e and an accent (Unicode's NFC, NFD).

    Bytes that are no UTF-8 stay as they are.
    """
    return unicodedata.normalize("NFC", name)


class Paths(Sequence):
    """N paths as one block of bytes.

    As a million separate strings they would take several times the memory, and every loader process would come to
    hold a copy of its own: reading a string writes its reference count, and so parts the page it shares with the
    process it was forked from.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._text = b"".join(encoded)
        self._ends = np.zeros(len(encoded) + 1, dtype=np.int64)  # path i is from the i-th number to the next
        np.cumsum([len(path) for path in encoded], out=self._ends[1:])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Union[int, slice]) -> Union[str, tuple[str, ...]]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(len(self))))
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self._text[self._ends[row] : self._ends[row + 1]])
