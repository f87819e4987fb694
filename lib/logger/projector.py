"""Files for TensorBoard's embedding projector: features, metadata of each image, and thumbnails."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
"""Pixels of a thumbnail. 10,000 of them make a sheet of 4,800 x 4,800 pixels; browsers accept up to 8,192."""

_SHEET = "thumbnails.png"
_CONFIG = "projector_config.pbtxt"


class Projector:
    """Writes `projector/` and projector_config.pbtxt, which lists its contents.

    Args:
        folder: of the run's event files.
        squares: (S, SIDE, SIDE, 3) uint8, one for each image that is shown.
    """

    def __init__(self, folder: Path, squares: np.ndarray):
        self._folder = folder
        self._files = folder / "projector"
        self._files.mkdir(parents=True, exist_ok=True)
        _sheet(squares).save(self._files / _SHEET)

    def add(self, name: str, features: np.ndarray, about: Mapping[str, Sequence[str]]) -> None:
        """Write features; they replace those of the same name.

        Args:
            name: a plain word.
            features: (S, D).
            about: columns of S texts each, by their names.
        """
        np.savetxt(self._files / f"{name}.tsv", features, fmt="%.5g", delimiter="\t")
        rows = list(zip(*about.values()))
        if len(about) > 1:  # a single column has no heading in this format
            rows.insert(0, tuple(about))
        text = "".join("\t".join(map(_plain, row)) + "\n" for row in rows)
        (self._files / f"{name}-about.tsv").write_text(text, encoding="utf-8")
        self._list()

    def _list(self) -> None:
        """Write projector_config.pbtxt, with the newest first: the page opens with the first name."""
        from google.protobuf import text_format
        from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

        config = ProjectorConfig()
        about = sorted(self._files.glob("*-about.tsv"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for number, path in enumerate(about, 1):
            name = path.name[: -len("-about.tsv")]
            entry = config.embeddings.add()
            entry.tensor_name = f"{number:03d}-{name}"
            entry.tensor_path = f"projector/{name}.tsv"
            entry.metadata_path = f"projector/{path.name}"
            entry.sprite.image_path = f"projector/{_SHEET}"
            entry.sprite.single_image_dim.extend([SIDE, SIDE])
        (self._folder / _CONFIG).write_text(text_format.MessageToString(config), encoding="utf-8")


def _sheet(squares: np.ndarray) -> Image.Image:
    """All thumbnails in one square picture, row by row."""
    across = math.ceil(math.sqrt(len(squares)))
    whole = np.full((across * across, SIDE, SIDE, 3), 255, dtype=np.uint8)
    whole[: len(squares)] = squares
    grid = whole.reshape(across, across, SIDE, SIDE, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(across * SIDE, across * SIDE, 3))


def _plain(cell: str) -> str:
    """The text without characters that would end a cell or a line; a file's name may hold any."""
    return "".join(letter if letter.isprintable() else " " for letter in cell)
