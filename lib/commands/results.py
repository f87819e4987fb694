"""`--embed` and `--export`, from the options to the folder; and the network that they and `--test-only` use."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from torch import Tensor, nn

import datasets
import models
from datasets.pipeline import Pipeline
from datasets.transforms import normalisation
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError
from lib.evaluation.features import FeatureSpace, Subject
from lib.export.kept_features import KeptFeatures, rounded
from lib.export.model import Model, Preprocessing, pictures_in
from lib.logger.console import LOGGER, close_log, open_log
from lib.nn.embedder import Embedder
from lib.pretrained.fitting import complete, fit, load_exactly, report
from lib.pretrained.weights_file import WeightsFile, of_checkpoint
from lib.runtime.device import choose_precision, describe_precision

log = logging.getLogger(LOGGER)

Saved = Optional[dict[str, Any]]


def take_network(
    network: nn.Module, options: Options, saved: Saved, source: Optional[Path], weights: Optional[WeightsFile]
) -> WeightsFile:
    """Fill a network that is to be used as it is: exactly from a checkpoint of --resume, else from --pretrained.

    Args:
        saved, source: the checkpoint of --resume and its file, or None.
        weights: of --pretrained; only its last layer may lack.

    Returns:
        what the file holds; without its memory bank where that cannot be of this network's features.

    Raises:
        UserError: it holds another network.
    """
    if saved is not None:
        load_exactly(network, saved["net"], str(source))
        return of_checkpoint(saved, source)
    fitted = fit(network, weights)
    complete(fitted, weights, options.network)
    for line in report(fitted, weights, options.network):
        # as warnings where something is not as one would think; --test-only shows no others
        log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights    %s", line)
    reason = None
    if fitted.last_is_random:
        log.warning("weights    the last layer (fc) is random: a feature is a random projection of what comes before")
        reason = "its rows are not of this last layer"
    elif weights.memory is not None and weights.memory.shape[1] != options.low_dim:
        reason = f"its rows have {weights.memory.shape[1]} values, features {options.low_dim}"
    if weights.memory is None or reason is None:
        return weights
    log.warning("weights    npc.memory is not used: %s", reason)
    return replace(weights, memory=None)


def embed_pictures(
    options: Options, saved: Saved, source: Optional[Path], weights: Optional[WeightsFile], world: World
) -> None:
    """`--embed`.

    Raises:
        UserError, RunError: as `embed`; there are no pictures, the output is not free, or several processes were
            started.
    """
    from lib.commands.embed import embed, output_folder  # with scikit-learn, which a run that trains can start without

    if world.size > 1:
        raise UserError("--embed runs in one process; start it without torchrun and with one device in --gpus")
    open_log(None, options.brief)
    try:
        output = output_folder(options, source or Path(options.pretrained))
        paths = pictures_in(options.embed)
        network = models.build(options.network, options.low_dim, options.stem, options.size, options.init, options.seed)
        file = take_network(network, options, saved, source, weights)
        statistics = normalisation.chosen(options, file.statistics)
        # a checkpoint's options are those of the run; of a file of weights it is taken where nothing else is asked for
        shrink = options.shrink if saved is not None else options.shrink or file.shrink
        preprocessing = Preprocessing.of(options.size, options.resize, statistics, shrink)
        dtype = choose_precision(options.precision, world.device)
        _say_what_computes(options, file, preprocessing, dtype)
        space, memory = _known_features(options, saved, source, file, Embedder(network, world.device, dtype), world)
        embed(options, Model(network, preprocessing, memory, world.device, dtype, space), file, paths, output)
    finally:
        close_log()


def _known_features(
    options: Options, saved: Saved, source: Optional[Path], file: WeightsFile, embedder: Embedder, world: World
) -> tuple[FeatureSpace, Optional[Tensor]]:
    """What a feature is, and those of the training images (N, d) on the CPU.

    The network's output is known by the memory bank, other features by what the session keeps of them. Where it keeps
    none, they are computed from the training images.

    Raises:
        UserError: these are not at hand, or are others than those that the network was trained on.
    """
    from lib.commands.export import is_of

    space = FeatureSpace(options.features, options.whiten)
    if space.is_plain:
        return space, file.memory
    kept = None if saved is None else KeptFeatures.of_checkpoint(source, saved)
    if kept is not None and kept.space.is_like(space):
        log.info("features   %s, as the session keeps them", space)
        return kept.space, kept.train
    wanted = f"{space.flags}: no such features are kept with {file.name}, and the training images to compute them from"
    try:
        split = datasets.load(options.dataset, options.data_root, options.download, options.labels)
        pipeline = Pipeline(split, options, world.device)
    except UserError as error:
        raise UserError(f"{wanted} are not at hand: {error}") from error
    try:
        if not is_of(file, pipeline, if_not_known=True):
            raise UserError(
                f"{wanted} are not at hand: these are others ({pipeline.name}, {len(pipeline.train)}); use the "
                "--dataset, --data-root, --limit-train and --seed it was made with"
            )
        log.info("features   %s, computed from %s training images", space, f"{len(pipeline.train):,}")
        subject = Subject(embedder, pipeline, world, space.dim(embedder.network, options.low_dim), space=space)
        train = subject.all_train()  # which fits the whitening
        return subject.space, rounded(train)
    finally:
        pipeline.close()


def export_results(
    options: Options,
    pipeline: Pipeline,
    embedder: Embedder,
    saved: Saved,
    source: Optional[Path],
    weights: Optional[WeightsFile],
    world: World,
) -> None:
    """`--export`.

    Raises:
        UserError, RunError: as `check_export` and `export`.
    """
    from lib.commands.export import check_export, export  # see `embed_pictures`

    open_log(None, options.brief, silent=not world.is_first)
    try:
        file = take_network(embedder.network, options, saved, source, weights)
        check_export(options, pipeline, file)
        shrink = options.shrink if pipeline.files_of([]) is not None else None  # images in memory are not shrunk
        statistics = (pipeline.means, pipeline.stds)
        preprocessing = Preprocessing.of(options.size, options.resize, statistics, shrink)
        _say_what_computes(options, file, preprocessing, embedder.dtype)
        for line in (*pipeline.notes, *pipeline.cautions):
            log.info("           %s", line)
        export(options, pipeline, preprocessing, embedder, file, world)
    finally:
        pipeline.close()
        close_log()


def _say_what_computes(options: Options, file: WeightsFile, preprocessing: Preprocessing, dtype: Any) -> None:
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
