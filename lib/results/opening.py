"""Opening a finished network from the files of a run or of an export."""

import os
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor

import models
from datasets import normalisation
from lib import devices, precision
from lib.config import Options
from lib.errors import UserError
from lib.pretrained import weights_file
from lib.pretrained.fitting import load_exactly
from lib.pretrained.weights_file import WeightsFile
from lib.results.model import Model, Preprocessing
from lib.results.result_folder import DESCRIPTION, FEATURES, STATE
from lib.session.resume import open_checkpoint


def open_model(path: Union[str, os.PathLike], device: str = "auto", computes_in: str = "fp32") -> Model:
    """The network of a session, a checkpoint file, or a folder that --export wrote.

    Args:
        path: of any of them; of a session the last epoch is taken.
        device: `auto`, `cpu`, or the index of a GPU, as --gpus.
        computes_in: `fp32`, `bf16` or `auto`, as --precision.

    Raises:
        UserError: there is no such thing, it is damaged, or there is no such device.
    """
    path = Path(path).expanduser()
    exported = path / DESCRIPTION if path.is_dir() else path.with_name(DESCRIPTION)
    if exported.is_file() and (path.is_dir() or path.name == STATE):
        file = weights_file.read(exported.with_name(STATE))
        memory = _exported_features(exported)
    elif not path.exists():
        raise UserError(f"{path}: there is no such session, checkpoint or exported folder")
    else:
        saved, source, _ = open_checkpoint(str(path), "sessions")
        file = weights_file.of_checkpoint(saved, source)
        memory = file.memory
    chosen = devices.choose(device)
    return _model(file, memory, chosen, precision.choose(computes_in, chosen))


def _model(file: WeightsFile, memory: Optional[Tensor], device: torch.device, dtype: Optional[torch.dtype]) -> Model:
    told: dict[str, Any] = {**Options().as_dict(), **file.options}
    network = models.build(told["network"], told["low_dim"], told["stem"], told["size"])
    load_exactly(network, file.weights, file.name)
    statistics = file.statistics or normalisation.of_data_set(file.about.get("dataset", ""))
    return Model(
        network, Preprocessing.of(told["size"], told["resize"], statistics, file.shrink), memory, device, dtype
    )


def _exported_features(description: Path) -> Optional[Tensor]:
    """Those of the training images, which come first in features.npy; None where only the network was passed on."""
    features = description.with_name(FEATURES)
    if not features.is_file():
        return None
    try:
        rows = weights_file.description_of(description)["source"]["rows"]["train"]
        return torch.from_numpy(np.array(np.load(features, mmap_mode="r", allow_pickle=False)[:rows]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{features} and {description} are not as --export writes them ({error})") from error
