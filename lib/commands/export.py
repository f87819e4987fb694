"""`--export`: features, clusters and neighbours of a data set, and the network, as plain files."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from datasets.image_set import UNLABELLED, ImageSet
from datasets.pipeline import Pipeline
from lib.clustering.clusters import check_number, clusters_of
from lib.commands.call import Call, load_network, open_images
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError, not_none
from lib.evaluation.baselines import PixelNeighbours
from lib.evaluation.features import Features, FeatureSpace
from lib.export.kept_features import rounded
from lib.export.model import Preprocessing
from lib.export.network_files import write_network
from lib.export.result_folder import (
    CENTRES,
    DISTANCES,
    FEATURES,
    IMAGES,
    NEIGHBOURS,
    check_free,
    cosine_distances,
    result_folder,
    write_table,
)
from lib.logger.console import LOGGER, RESULT, close_log, open_log
from lib.nn.embedder import Embedder
from lib.pretrained.weights_file import WeightsFile
from lib.runtime.device import describe_precision
from lib.search.exact import ExactSearch
from lib.training.state import build_embedder

log = logging.getLogger(LOGGER)


def export(call: Call) -> None:
    """`--export`: write the features, clusters and neighbours of a data set, and the network, into a folder.

    Raises:
        UserError, RunError: as `check_export` and `write_export`.
    """
    options, world = call.options, call.world
    if world.is_first:  # which writes; and before a large data set is read
        check_free("--export", Path(not_none(options.export)), options.overwrite)
    pipeline = open_images(options, world, call.process)
    embedder = build_embedder(options, world, call.dtype)
    open_log(None, options.brief, silent=not world.is_first)
    try:
        file = load_network(embedder.network, options, call.start)
        check_export(options, pipeline, file)
        shrink = options.shrink if pipeline.files_of([]) is not None else None  # images in memory are not shrunk
        statistics = (pipeline.means, pipeline.stds)
        preprocessing = Preprocessing.of(options.size, options.resize, statistics, shrink)
        log_network(options, file, preprocessing, embedder.dtype)
        for line in (*pipeline.notes, *pipeline.cautions):
            log.info("           %s", line)
        write_export(options, pipeline, preprocessing, embedder, file, world)
    finally:
        pipeline.close()
        close_log()


def check_export(options: Options, pipeline: Pipeline, file: WeightsFile) -> None:
    """Check the options against checkpoint and images before anything is computed.

    Raises:
        UserError: the checkpoint of --resume belongs to other images, or --neighbours or --num-clusters exceeds the
            number of training images.
    """
    if options.resume is not None and not is_of(file, pipeline, if_not_known=True):
        raise UserError(
            f"--export: {file.name} was trained on other images ({file.about.get('dataset')}, "
            f"{file.about.get('training_images')}) than these ({pipeline.name}, {len(pipeline.train)}); use "
            "the --dataset, --data-root, --limit-train and --seed it was made with, or --pretrained instead of --resume"
        )
    images = len(pipeline.train)
    if options.neighbours >= images:
        raise UserError(
            f"--neighbours {options.neighbours}: an image has only {images - 1} other training images; lower it"
        )
    check_number(options.num_clusters, images)


def is_of(file: WeightsFile, pipeline: Pipeline, if_not_known: bool) -> bool:
    """Whether a network was trained on these images; returns `if_not_known` where its file does not say."""
    if file.fingerprint is None:
        return if_not_known
    return pipeline.are_those_of(file.fingerprint, file.contents)


def write_export(
    options: Options,
    pipeline: Pipeline,
    preprocessing: Preprocessing,
    embedder: Embedder,
    file: WeightsFile,
    world: World,
) -> None:
    """Write the folder `--export`. All processes must call it; the first one writes.

    Raises:
        UserError: an image cannot be read.
        RunError: the folder could not be written, or network.onnx does not compute what the network computes.
    """
    space = FeatureSpace(options.features, options.whiten)
    computed = Features(embedder, pipeline, world, space.dim(embedder.network, options.low_dim), space=space)
    train = computed.all_train()
    test = None if pipeline.test is None else computed.all_test.cpu()
    compared = None
    if PixelNeighbours.measurable(pipeline):
        compared = PixelNeighbours(pipeline, world, options.size).evaluate(computed)
    if train is None:
        return
    space = computed.space
    sets = [("train", pipeline.train)] + ([] if pipeline.test is None else [("test", pipeline.test)])
    log.info("features   %s, of %s", space, ", ".join(f"{len(images):,} {split} images" for split, images in sets))
    similarities, rows = _neighbours(train, test, options)
    features = train if test is None else torch.cat([train, test])
    kept, clustered = None, train if space.is_plain else rounded(train)
    if space.is_plain and file.memory is not None and is_of(file, pipeline, if_not_known=False):
        kept, clustered = file.clusters, file.memory
    clusters = clusters_of(kept, clustered, options.num_clusters, options.seed)
    log.info("clusters   %s", clusters.described(clustered))
    about = {
        "file": file.name,
        **file.about,
        "rows": {split: len(images) for split, images in sets},
        "features_computed_in": describe_precision(embedder.dtype),
        **({} if compared is None else compared.scalars),
    }
    with result_folder("--export", Path(not_none(options.export)), options.overwrite) as folder:
        np.save(folder / FEATURES, features.numpy())
        np.save(folder / NEIGHBOURS, rows.numpy())
        np.save(folder / DISTANCES, cosine_distances(similarities).numpy())
        np.save(folder / CENTRES, clusters.centres.numpy())
        write_table(folder / IMAGES, _columns(sets, clusters.assign(features)))
        note = write_network(folder, embedder.network, options, preprocessing, about, space)
    if compared is not None:
        log.info("neighbours %s", compared.summary, extra=RESULT)
    log.info("network    %s", note, extra=RESULT)
    log.info("written to %s: %s", options.export, ", ".join(sorted(os.listdir(options.export))), extra=RESULT)


def log_network(
    options: Options, file: WeightsFile, preprocessing: Preprocessing, dtype: Optional[torch.dtype]
) -> None:
    """Log the network that computes the features, and the preprocessing of its images."""
    log.info("network    %s, %d features, from %s", options.network, options.low_dim, file.name)
    log.info(
        "images     %sscaled to %d, the middle %d pixels; means %s, stds %s; %s",
        "" if preprocessing.shrink is None else f"the middle square of {preprocessing.shrink} pixels, ",
        preprocessing.resize,
        preprocessing.size,
        " ".join(map(str, preprocessing.means)),
        " ".join(map(str, preprocessing.stds)),
        describe_precision(dtype),
    )


def _neighbours(train: Tensor, test: Optional[Tensor], options: Options) -> tuple[Tensor, Tensor]:
    """The nearest training images of every image, excluding itself: similarities and rows, (N, K) each."""
    search = ExactSearch(train)
    similarities, rows = search(train, options.neighbours, torch.arange(len(train)))
    if test is None:
        return similarities, rows
    of_test = search(test, options.neighbours)
    return torch.cat([similarities, of_test[0]]), torch.cat([rows, of_test[1]])


def _known(label: int) -> Optional[int]:
    return None if label == UNLABELLED else label


def _columns(sets: Sequence[tuple[str, ImageSet]], clusters: Tensor) -> dict[str, Sequence[Any]]:
    """The columns of images.csv, training images first."""
    columns: dict[str, list] = {"split": [], "path": [], "dataset_row": [], "label": [], "class": []}
    for split, images in sets:
        count = len(images)
        labels = [None] * count if images.labels is None else [_known(label) for label in images.labels.tolist()]
        columns["split"] += [split] * count
        columns["path"] += [None] * count if images.paths is None else list(images.paths)
        columns["dataset_row"] += images.numbers.tolist()
        columns["label"] += labels
        columns["class"] += [None if label is None else images.classes[label] for label in labels]
    return {"row": range(len(clusters)), **columns, "cluster": clusters.tolist()}
