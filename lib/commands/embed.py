"""`--embed`: features of new pictures, their clusters, and the training images nearest to them."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

import datasets
import models
from datasets.files.bad_images import readable_images
from datasets.image_set import ImageSet
from datasets.pipeline import Pipeline, normalisation
from lib.clustering.clusters import check_number, clusters_of
from lib.commands.call import Call, load_network
from lib.commands.export import is_of, log_network
from lib.commands.start import Resumed, resumed_path
from lib.config import Options
from lib.errors import UserError, not_none
from lib.evaluation.features import Features, FeatureSpace
from lib.export.kept_features import KeptFeatures, rounded
from lib.export.model import Model, Preprocessing, pictures_in, training_paths
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
from lib.logger.console import LOGGER, RESULT, close_log, open_log, progress_bar
from lib.nn.embedder import Embedder
from lib.pretrained.weights_file import WeightsFile
from lib.session.folder import SessionFolder, check_own_files

log = logging.getLogger(LOGGER)

_FEW = 64  # pictures up to which no DataLoader workers are started


def embed(call: Call) -> None:
    """`--embed`: write the features of new pictures into a folder.

    Raises:
        UserError, RunError: as `write_embedding`; there are no pictures, the output is not free, or several processes
            were started.
    """
    options, world, start = call.options, call.world, call.start
    if world.size > 1:
        raise UserError("--embed runs in one process; start it without torchrun and with one device in --gpus")
    open_log(None, options.brief)
    try:
        output = output_folder(options, resumed_path(start) or Path(not_none(options.pretrained)))
        paths = pictures_in(not_none(options.embed))
        network = models.build(options.network, options.low_dim, options.stem, options.size, options.init, options.seed)
        file = load_network(network, options, start)
        statistics = normalisation(options, file.statistics)
        shrink = options.shrink or file.shrink
        if isinstance(start, Resumed) and options.shrink == start.checkpoint["options"].get("shrink"):
            shrink = file.shrink  # as the run applied it
        preprocessing = Preprocessing.of(options.size, options.resize, statistics, shrink)
        log_network(options, file, preprocessing, call.dtype)
        space, memory = _known_features(call, file, Embedder(network, world.device, call.dtype))
        model = Model(network, preprocessing, memory, world.device, call.dtype, space)
        write_embedding(options, model, file, paths, output)
    finally:
        close_log()


def _known_features(call: Call, file: WeightsFile, embedder: Embedder) -> tuple[FeatureSpace, Optional[Tensor]]:
    """The feature space, and the features of the training images (N, d) on the CPU.

    They come from the memory bank, which holds the network's output, or from the session's features.npz; otherwise
    they are computed from the training images.

    Raises:
        UserError: the training images are missing, or are not those of the network's run.
    """
    options, world, start = call.options, call.world, call.start
    space = FeatureSpace(options.features, options.whiten)
    if space.is_plain:
        return space, file.memory
    kept = KeptFeatures.of_checkpoint(start.path, start.checkpoint) if isinstance(start, Resumed) else None
    if kept is not None and kept.space.is_like(space):
        log.info("features   %s, as the session keeps them", space)
        return kept.space, kept.train
    wanted = f"{space.flags}: no such features are kept with {file.name}, and the training images to compute them from"
    try:
        split = datasets.load(options.dataset, options.data_root, options.download, options.labels)
        pipeline = Pipeline(split, options, world.device)
    except UserError as error:
        raise UserError(f"{wanted} are not available: {error}") from error
    try:
        if not is_of(file, pipeline, if_not_known=True):
            raise UserError(
                f"{wanted} are not available: the images here are others ({pipeline.name}, {len(pipeline.train)}); use "
                "the --dataset, --data-root, --limit-train and --seed it was made with"
            )
        log.info("features   %s, computed from %s training images", space, f"{len(pipeline.train):,}")
        features = Features(embedder, pipeline, world, space.dim(embedder.network, options.low_dim), space=space)
        train = features.all_train()  # fits the whitening
        return features.space, rounded(not_none(train))
    finally:
        pipeline.close()


def output_folder(options: Options, source: Path) -> Path:
    """The folder of the result: `--output`, or embedded/NAME in the session of the checkpoint.

    Args:
        source: the file of the network.

    Raises:
        UserError: the folder exists, or the session has symbolic links, which may lead anywhere.
    """
    if options.output is not None:
        output = Path(options.output)
    else:
        output = default_output(source, not_none(options.embed))
        if Path(os.path.abspath(source)).parent.name == "checkpoint":
            check_own_files(SessionFolder(output.parent.parent))
    check_free("--output", output, options.overwrite)
    return output


def write_embedding(options: Options, model: Model, file: WeightsFile, paths: Sequence[str], output: Path) -> None:
    """Write the features of pictures with their clusters and nearest training images.

    The training images are not needed: `model` has their features.

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
        pictures, _ = readable_images(pictures, "new", options.workers_num, report=True)
    log.info("pictures   %s in %s", f"{len(pictures):,}", options.embed)
    paths = not_none(pictures.paths)
    features = _features(model, paths, options)
    columns: dict[str, Sequence[Any]] = {"row": range(len(features)), "path": paths}
    similarities = rows = None
    if model.memory is None:
        log.warning("%s holds no memory bank of this network: no clusters and no nearest training images", file.name)
    else:
        kept = file.clusters if model.space.is_plain else None
        clusters = clusters_of(kept, model.memory, options.num_clusters, options.seed)
        log.info("clusters   %s", clusters.described(model.memory))
        columns["cluster"] = clusters.assign(features).tolist()
        similarities, rows = model.nearest(features, options.neighbours)
        names, note = training_paths(options, file.fingerprint, file.contents)
        log.info("nearest    %d of %s training images, %s", options.neighbours, f"{len(model.memory):,}", note)
        columns.update(_nearest_columns(similarities, rows, names))
    with result_folder("--output", output, options.overwrite) as folder:
        np.save(folder / FEATURES, features.numpy())
        if similarities is not None and rows is not None:
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
    bar = progress_bar(len(paths), options.brief, unit="img")
    with nullcontext() if bar is None else bar as progress:
        for batch, _ in model.batches(paths, workers):
            features.append(batch)
            if progress is not None:
                progress.update(len(batch))
    return torch.cat(features)


def _nearest_columns(similarities: Tensor, rows: Tensor, names: Optional[Sequence[str]]) -> dict[str, Sequence[Any]]:
    """nearest_1, similarity_1, nearest_2 and so on; the nearest by path, or by row where the paths are not known."""
    columns: dict[str, Sequence[Any]] = {}
    for column in range(rows.shape[1]):
        found = rows[:, column].tolist()
        columns[f"nearest_{column + 1}"] = found if names is None else [names[row] for row in found]
        columns[f"similarity_{column + 1}"] = [round(value, 6) for value in similarities[:, column].tolist()]
    return columns
