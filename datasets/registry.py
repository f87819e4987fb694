"""Loading a data set by its name in `lib.config.registry.DATASETS`."""

from pathlib import Path
from typing import Optional

from datasets.split import Split
from lib.config.registry import DATASETS, find
from lib.errors import UserError


def load(name: str, root: Optional[str], download: bool, labels: Optional[str] = None) -> Split:
    """A data set.

    Args:
        name: one of `DATASETS`, in either case.
        root: its folder; `data/<name>` in the working directory if None.
        download: whether what is missing may be fetched, where the data set can be.
        labels: where the labels of `photos` come from, as `--labels`; None: there are none.

    Raises:
        UserError: there is no such data set, it is missing, damaged or empty, or the labels do not fit.
    """
    if name.lower() not in DATASETS:
        raise UserError(f"--dataset {name}: no such data set; known are: {', '.join(DATASETS)}")
    folder = Path("data", name.lower()) if root is None else Path(root).expanduser()
    split: Split = find(DATASETS, name.lower())(folder, download)
    if labels is None:
        return split
    from datasets.sources.labels import with_labels

    return with_labels(split, folder, labels)
