"""Opening a finished network from the files of a run or of an export."""

import os
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor

import models
from datasets.transforms import normalisation
from lib.checkpoint.resume import open_checkpoint
from lib.config import Options
from lib.errors import UserError
from lib.evaluation.feature_space import BACKBONE, EMBEDDING, PLAIN, FeatureSpace
from lib.export.kept_features import KeptFeatures, read_arrays, space_of
from lib.export.model import Model, Preprocessing
from lib.export.result_folder import DESCRIPTION, FEATURES, STATE, WHITENING
from lib.nn import precision
from lib.pretrained import weights_file
from lib.pretrained.fitting import load_exactly
from lib.pretrained.weights_file import WeightsFile
from lib.runtime import devices

Known = list[tuple[FeatureSpace, Optional[Tensor]]]


def open_model(
    path: Union[str, os.PathLike],
    device: str = "auto",
    computes_in: str = "fp32",
    features: Optional[str] = None,
    whiten: Optional[bool] = None,
) -> Model:
    """The network of a session, a checkpoint file, or a folder that --export wrote.

    Args:
        path: of any of them; of a session the last epoch is taken.
        device: `auto`, `cpu`, or the index of a GPU, as --gpus.
        computes_in: `fp32`, `bf16` or `auto`, as --precision.
        features: `embedding` or `backbone`, as --features; None: as the run or the export was asked for.
        whiten: as --whiten, likewise.

    Raises:
        UserError: there is no such thing, it is damaged, or there is no such device; or the whitening that is wanted is
            not kept with it.
    """
    path = Path(path).expanduser()
    exported = path / DESCRIPTION if path.is_dir() else path.with_name(DESCRIPTION)
    if exported.is_file() and (path.is_dir() or path.name == STATE):
        file = weights_file.read(exported.with_name(STATE))
        told, known = _exported(exported)
    elif not path.exists():
        raise UserError(f"{path}: there is no such session, checkpoint or exported folder")
    else:
        saved, source, _ = open_checkpoint(str(path), "sessions")
        file = weights_file.of_checkpoint(saved, source)
        told = FeatureSpace(saved["options"].get("features", EMBEDDING), saved["options"].get("whiten", False))
        kept = KeptFeatures.of_checkpoint(source, saved)
        known = [(PLAIN, file.memory)] + ([] if kept is None else [(kept.space, kept.train)])
    chosen = devices.choose(device)
    level, whitened = told.level if features is None else features, told.whitened if whiten is None else whiten
    if level not in (EMBEDDING, BACKBONE):
        raise UserError(f"features={level!r}: {EMBEDDING!r} or {BACKBONE!r} is needed")
    space, memory = _chosen(FeatureSpace(level, whitened), known, path)
    return _model(file, space, memory, chosen, precision.choose(computes_in, chosen))


def _chosen(wanted: FeatureSpace, known: Known, path: Path) -> tuple[FeatureSpace, Optional[Tensor]]:
    """What a feature is, and those of the training images if they are known."""
    for space, memory in known:
        if space.is_like(wanted):
            return space, memory
    if wanted.whitened:
        raise UserError(
            f"{path} keeps no whitening of its {wanted.level} features: a run with {wanted.flags} keeps it at its "
            f"end, also where --resume takes up a finished one; or load(..., whiten=False)"
        )
    return wanted, None


def _model(
    file: WeightsFile,
    space: FeatureSpace,
    memory: Optional[Tensor],
    device: torch.device,
    dtype: Optional[torch.dtype],
) -> Model:
    told: dict[str, Any] = {**Options().as_dict(), **file.options}
    network = models.build(told["network"], told["low_dim"], told["stem"], told["size"])
    load_exactly(network, file.weights, file.name)
    statistics = file.statistics or normalisation.of_data_set(file.about.get("dataset", ""))
    preprocessing = Preprocessing.of(told["size"], told["resize"], statistics, file.shrink)
    return Model(network, preprocessing, memory, device, dtype, space)


def _exported(description: Path) -> tuple[FeatureSpace, Known]:
    """What the features of an export are; and, fitted, with those of the training images, which come first in
    features.npy and may not have been passed on."""
    features, whitening = description.with_name(FEATURES), description.with_name(WHITENING)
    try:
        told = weights_file.description_of(description)
        told_space = told.get("features", {"level": EMBEDDING, "whitened": False})  # earlier exports do not tell
        wanted = FeatureSpace(str(told_space["level"]), bool(told_space["whitened"]))
        if wanted.whitened and not whitening.is_file():
            return wanted, []
        space = space_of(wanted.level, read_arrays(whitening) if wanted.whitened else {})
        if not features.is_file():
            return wanted, [(space, None)]
        rows = told["source"]["rows"]["train"]
        train = torch.from_numpy(np.array(np.load(features, mmap_mode="r", allow_pickle=False)[:rows]))
        return wanted, [(space, train)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"the files beside {description} are not as --export writes them ({error})") from error
