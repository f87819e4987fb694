"""features.npz of a session: the training features that --features and --whiten ask for, and their whitening.

They are kept at the end of a run, so that --embed, the report and the Python interface need no data set. The memory
bank cannot replace them: its rows are of the network's output, not whitened, and lag behind the network.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.errors import UserError
from lib.evaluation.features import BACKBONE, EMBEDDING, FeatureSpace, Whitening
from lib.runtime.atomic import replace_file, writing
from lib.session.folder import SessionFolder


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """The file's content: arrays that `numpy.load` reads without pickle.

    Attributes:
        space: what a feature is, fitted. In the file: `level`, and `mean` (d,) and `matrix` (d, d) float32 where
            features are whitened.
        train: (N, d) float32 on the CPU, rows of unit length but for their rounding: the file has float16, 2 N d
            bytes, which changes a cosine by less than 0.001.
        round, epoch: of the network, as in its checkpoint.
    """

    space: FeatureSpace
    train: Tensor
    round: int
    epoch: int

    def write(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            RunError: the file cannot be written.
        """
        arrays: dict[str, Any] = {
            "level": self.space.level,
            "round": self.round,
            "epoch": self.epoch,
            "train": self.train.half().numpy(),
            **whitening_arrays(self.space),
        }
        with writing(path):
            replace_file(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def read(cls, path: Path) -> "KeptFeatures":
        """Read the file that `write` wrote.

        Raises:
            UserError: it is damaged or not such a file.
        """
        arrays = read_arrays(path)
        try:
            space = space_of(str(arrays["level"]), arrays)
            train = torch.from_numpy(arrays["train"]).float()
            if train.dim() != 2 or (space.whitening is not None and train.shape[1] != len(space.whitening.mean)):
                raise ValueError(f"its features are {tuple(train.shape)}")
            return cls(space, train, int(arrays["round"]), int(arrays["epoch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not what a run keeps there ({error}); remove it") from None

    @classmethod
    def of_checkpoint(cls, source: Path, saved: Mapping[str, Any]) -> Optional["KeptFeatures"]:
        """Those of the network of a checkpoint; None if its session has none, or those of another epoch.

        Raises:
            UserError: as `read`.
        """
        session = SessionFolder.of_checkpoint(source)
        if session is None or not session.features.is_file():
            return None
        kept = cls.read(session.features)
        expected = (saved["round"], saved["epoch"], saved.get("step", 0), len(saved["npc"]["memory"]))
        return kept if (kept.round, kept.epoch, 0, len(kept.train)) == expected else None


def rounded(train: Tensor) -> Tensor:
    """(N, d) as they are after writing and reading features.npz, so that both give the same clusters."""
    return F.normalize(train.half().float(), dim=1)


def whitening_arrays(space: FeatureSpace) -> dict[str, np.ndarray]:
    """`mean` (d,) and `matrix` (d, d) float32; nothing where features are not whitened."""
    if space.whitening is None:
        return {}
    return {"mean": space.whitening.mean.cpu().numpy(), "matrix": space.whitening.matrix.cpu().numpy()}


def space_of(level: str, arrays: Mapping[str, np.ndarray]) -> FeatureSpace:
    """The feature space of a level and the arrays of its whitening, if it has one.

    Raises:
        KeyError, ValueError: the arrays do not describe a whitening.
    """
    if level not in (EMBEDDING, BACKBONE):
        raise ValueError(f"its level is {level!r}")
    if "mean" not in arrays:
        return FeatureSpace(level)
    mean, matrix = (torch.from_numpy(arrays[name]).float() for name in ("mean", "matrix"))
    if mean.dim() != 1 or matrix.shape != (len(mean), len(mean)):
        raise ValueError(f"its mean and matrix are {tuple(mean.shape)} and {tuple(matrix.shape)}")
    if not (torch.isfinite(mean).all() and torch.isfinite(matrix).all()):
        raise ValueError("its whitening is not finite")
    return FeatureSpace(level, True, Whitening(mean, matrix))


def position_of(path: Path) -> dict[str, np.ndarray]:
    """`round` and `epoch` in features.npz.

    Raises:
        UserError: it cannot be read.
    """
    return read_arrays(path, ("round", "epoch"))


def read_arrays(path: Path, names: Optional[Sequence[str]] = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, all or those of these names; nothing in it is executed.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged or not a file of arrays; remove it") from None
