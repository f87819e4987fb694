"""`--embed`: features of new pictures, their clusters, and the training images nearest to them."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from datasets.files.bad_images import readable
from datasets.image_set import ImageSet
from lib.clustering.clusters import check_number, find_clusters
from lib.config import Options
from lib.errors import UserError
from lib.export.model import Model, training_paths
from lib.export.result_folder import (
    DISTANCES,
    FEATURES,
    IMAGES,
    NEIGHBOURS,
    check_free,
    cosine_distances,
    result_folder,
    write_table,
)
from lib.logger.console import LOGGER, RESULT, is_terminal
from lib.logger.progress import tqdm
from lib.pretrained.weights_file import WeightsFile
from lib.session.folder import SessionFolder, check_own_files

log = logging.getLogger(LOGGER)

_FEW = 64  # pictures that are not worth starting loader processes for


def output_folder(options: Options, source: Path) -> Path:
    """Where the result goes: `--output`, or else embedded/NAME in the session of the checkpoint.

    Args:
        source: the file of the network.

    Raises:
        UserError: that place is not free, or there are links in the session, which may lead anywhere.
    """
    if options.output is not None:
        output = Path(options.output)
    else:
        output = default_output(source, options.embed)
        if Path(os.path.abspath(source)).parent.name == "checkpoint":
            check_own_files(SessionFolder(output.parent.parent))
    check_free("--output", output, options.overwrite)
    return output


def embed(options: Options, model: Model, file: WeightsFile, paths: Sequence[str], output: Path) -> None:
    """Write the features of pictures with their clusters and nearest training images.

    The training images are known by the rows of the file's memory bank, so that they need not be at hand.

    Args:
        model: the network of `file`.
        paths: of the pictures.
        output: the folder to write.

    Raises:
        UserError: a picture cannot be read, or there are fewer training images than neighbours or clusters are asked
            for.
        RunError: the output could not be written.
    """
    if model.memory is not None:
        _check_sizes(options, len(model.memory))
    pictures = ImageSet(paths)
    if options.skip_bad_images:
        pictures, _ = readable(pictures, "new", options.workers_num, report=True)
    log.info("pictures   %s in %s", f"{len(pictures):,}", options.embed)
    features = _features(model, pictures.paths, options)
    columns: dict[str, Sequence[Any]] = {"row": range(len(features)), "path": pictures.paths}
    similarities = rows = None
    if model.memory is None:
        log.warning("%s holds no memory bank of this network: no clusters and no nearest training images", file.name)
    else:
        columns["cluster"] = find_clusters(model.memory, options.num_clusters, options.seed).of(features).tolist()
        similarities, rows = model.nearest(features, options.neighbours)
        names, note = training_paths(options, file.fingerprint, file.contents)
        log.info("nearest    %d of %s training images, %s", options.neighbours, f"{len(model.memory):,}", note)
        columns.update(_nearest_columns(similarities, rows, names))
    with result_folder("--output", output, options.overwrite) as folder:
        np.save(folder / FEATURES, features.numpy())
        if rows is not None:
            np.save(folder / NEIGHBOURS, rows.numpy())
            np.save(folder / DISTANCES, cosine_distances(similarities).numpy())
        write_table(folder / IMAGES, columns)
    log.info("written to %s: %s", output, ", ".join(sorted(os.listdir(output))), extra=RESULT)


def default_output(source: Path, pictures: str) -> Path:
    """embedded/NAME in the session of the checkpoint, or beside a file that is in none; NAME is that of the folder of
    pictures."""
    source = Path(os.path.abspath(source))
    base = source.parent.parent if source.parent.name == "checkpoint" else source.parent
    return base / "embedded" / os.path.basename(os.path.realpath(pictures))


def _check_sizes(options: Options, images: int) -> None:
    if options.neighbours > images:
        raise UserError(f"--neighbours {options.neighbours}: there are only {images} training images; lower it")
    check_number(options.num_clusters, images)


def _features(model: Model, paths: Sequence[str], options: Options) -> Tensor:
    features = []
    workers = options.workers_num if len(paths) > _FEW else 0
    silent = options.brief or tqdm is None or not is_terminal(sys.stderr)
    with nullcontext() if silent else tqdm(total=len(paths), unit="img", leave=False) as progress:
        for batch, _ in model.batches(paths, workers):
            features.append(batch)
            if progress is not None:
                progress.update(len(batch))
    return torch.cat(features)


def _nearest_columns(similarities: Tensor, rows: Tensor, names: Optional[Sequence[str]]) -> dict[str, Sequence[Any]]:
    """nearest_1, similarity_1, nearest_2 and so on; the nearest by path, or by row where the paths are not known."""
    columns: dict[str, Sequence[Any]] = {}
    for place in range(rows.shape[1]):
        found = rows[:, place].tolist()
        columns[f"nearest_{place + 1}"] = found if names is None else [names[row] for row in found]
        columns[f"similarity_{place + 1}"] = [round(value, 6) for value in similarities[:, place].tolist()]
    return columns
