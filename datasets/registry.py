"""Loading a data set by its name in `lib.config.registry.DATASETS`."""

from dataclasses import replace
from pathlib import Path
from typing import Optional

from datasets.split import Split
from lib.config.registry import DATASETS, find
from lib.errors import UserError

PACKAGED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's packages put a data set (dataset-fashion-mnist), looked for where data/NAME does not exist."""


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> Split:
    """A data set.

    Args:
        name: one of `DATASETS`, in either case.
        root: its folder; if None, `data/<name>` in the working directory, or else that of a package of the system.
        download: whether what is missing may be fetched, where the data set can be.
        labels: where the labels of `photos` come from, as `--labels`; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    if name.lower() not in DATASETS:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(DATASETS)}")
    folder = Path("data", name.lower()) if root is None else Path(root).expanduser()
    packaged = PACKAGED.get(name.lower())
    if root is None and packaged is not None and packaged.is_dir() and not folder.exists():
        folder = packaged
    split: Split = find(DATASETS, name.lower())(folder, download)
    if folder == packaged:
        split = replace(split, notes=(*split.notes, f"read from {packaged}, the system's package"))
    if labels is None:
        return split
    from datasets.sources.labels import with_labels

    return with_labels(split, folder, labels)
