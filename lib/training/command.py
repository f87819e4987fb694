"""What `main.py` does once the options are known: train, go on, or evaluate."""

import logging
from pathlib import Path
from typing import Any, Optional

import torch

import datasets
from datasets.pipeline import Pipeline
from lib import devices, precision
from lib.allocator import keep_freed_memory
from lib.config import Options, Settings, to_yaml
from lib.distributed import group
from lib.distributed.place import Place
from lib.distributed.world import World
from lib.errors import LostContact, UserError
from lib.evaluation.evaluator import Evaluator
from lib.pretrained.bank import start_bank
from lib.pretrained.fitting import Fit, fit, report
from lib.pretrained.weights_file import WeightsFile
from lib.results.command import embed_pictures, export_results, take_network
from lib.results.result_folder import check_free
from lib.session import checkpoint, provenance
from lib.session.folder import SessionFolder
from lib.session.journal import LOGGER, Metrics, close_log, open_log
from lib.training.runner import RESULT, Runner, check_curriculum
from lib.training.state import TrainingState

log = logging.getLogger(LOGGER)


def execute(
    settings: Settings,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    place: Place,
    weights: Optional[WeightsFile] = None,
) -> None:
    """Run the command.

    Args:
        settings: the merged options.
        saved: the checkpoint to go on from, or None to start.
        source: the file it came from.
        place: of this process among those of the run.
        weights: what --pretrained names, or None.
    """
    world = group.join(settings.options.gpus, place)
    keep_freed_memory()
    try:
        _execute(settings, saved, source, weights, world)
    except RuntimeError as error:
        if world.size == 1:
            raise
        # most likely a collective whose other side is gone; that one has said more
        raise LostContact(f"{str(error).splitlines()[0]} (what another process says comes first)") from error
    group.leave()  # not after a failure: taking leave could wait for a process that is gone


def _execute(
    settings: Settings,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    weights: Optional[WeightsFile],
    world: World,
) -> None:
    options, device = settings.options, world.device
    torch.backends.cuda.matmul.allow_tf32 = False  # loss, bank and entropies are float32 in any case
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True  # batches of one size: the search for the fastest algorithm pays
    if options.embed is not None:
        embed_pictures(options, saved, source, weights, world)
        return
    if options.export is not None:
        check_free("--export", Path(options.export), options.overwrite)  # before a large data set is looked through
    images = datasets.load(options.dataset, options.data_root, options.download)
    pipeline = Pipeline(images, options, device, world.rank, world.size)
    state = TrainingState.fresh(options, pipeline, world, precision.choose(options.precision, device))
    search = "auto" if options.knn_backend == "ivf" else options.knn_backend  # accuracies are exact in any case
    evaluator = Evaluator(pipeline, world, options.low_dim, options.protocol, options.knn_k, options.knn_sigma, search)
    if options.export is not None:
        export_results(options, pipeline, state.embedder, saved, source, weights, world)
        return
    if options.test_only:
        take_network(state.embedder.network, options, saved, source, weights)
        _test(settings, state, evaluator, saved, source, world)
        return
    check_curriculum(options, len(pipeline.train))
    fitted: Optional[Fit] = None
    if saved is not None:
        state.restore(saved, str(source), options, pipeline)
    elif weights is not None:
        fitted = fit(state.embedder.network, weights)
    world.barrier()  # all have read the checkpoint before the first puts later ones aside
    session = _open_session(settings, saved, source) if world.is_first else None
    log_file = session.log if session is not None and options.log_file else None
    open_log(log_file, options.brief, silent=not world.is_first)
    try:
        _introduce(settings, state, pipeline, world, session, saved, source)
        if fitted is not None:
            for line in report(fitted, weights, options.network):
                log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights   %s", line)
            log.info("weights   %s", start_bank(state.bank, weights, state.embedder, pipeline))
        labels = None if pipeline.train.labels is None else torch.from_numpy(pipeline.train.labels)
        Runner(options, state, pipeline, evaluator, session, labels, world).run()
        _conclude(state, evaluator, session)
    finally:
        pipeline.close()
        close_log()


def _test(
    settings: Settings,
    state: TrainingState,
    evaluator: Evaluator,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    world: World,
) -> None:
    """`--test-only`: features of training and test images recomputed, one line of result, nothing written."""
    if not evaluator.possible:
        raise UserError(f"--test-only: {settings.options.dataset} has no labelled test images to judge by")
    accuracy = evaluator.recomputed(state.embedder)
    if not world.is_first:
        return
    name = settings.options.pretrained if saved is None else f"{source}: round {saved['round']}, epoch {saved['epoch']}"
    print(
        f"{name}: "
        f"{settings.options.protocol} {accuracy} (training features recomputed)"
    )


def _open_session(
    settings: Settings, saved: Optional[dict[str, Any]], source: Optional[Path]
) -> Optional[SessionFolder]:
    """The session of the checkpoint when going on, a new one otherwise, none with --debug."""
    options = settings.options
    if options.debug:
        return None
    if saved is not None and not options.restart:
        folder = source.resolve().parent
        session = SessionFolder(folder.parent)
        if folder.name != "checkpoint" or not session.config.exists():
            raise UserError(
                f"--resume {source}: the file is not in a session's checkpoint folder, so there is no session to go on"
                " in; add --restart to start a new one from it"
            )
        Metrics(session.metrics).rewind(saved["round"], saved["epoch"])
        session.set_aside_after(saved["round"], saved["epoch"], lambda path: checkpoint.load(path)["epoch"])
        session.write_config(to_yaml(settings))
        return session
    session = SessionFolder.create(options.sess_dir, options.session)
    origin = "" if source is None else f"# This run went on from {source}; without it these options start anew.\n"
    session.write_config(origin + to_yaml(settings))
    return session


def _introduce(
    settings: Settings,
    state: TrainingState,
    pipeline: Pipeline,
    world: World,
    session: Optional[SessionFolder],
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
) -> None:
    options = settings.options
    log.info("command   %s", provenance.command_line())
    log.info("code      %s", provenance.git_revision())
    log.info("versions  %s", ", ".join(f"{name} {version}" for name, version in provenance.versions().items()))
    processes = "" if world.size == 1 else f"{world.size} processes, the first on "
    log.info("device    %s%s; %s", processes, devices.describe(world.device), precision.describe(state.embedder.dtype))
    test = "no" if pipeline.test is None else f"{len(pipeline.test):,}"
    loaders = f"in {options.workers_num} loader processes" if options.workers_num else "in this process"
    place = "on the device, by the batch" if pipeline.on_device else loaders
    log.info(
        "data      %s: %s training, %s test images; augmented %s",
        pipeline.name,
        f"{len(pipeline.train):,}",
        test,
        place,
    )
    if pipeline.skipped:
        log.warning("data      %d unreadable images left out (--skip-bad-images)", len(pipeline.skipped))
    log.info("network   %s, %d features", options.network, options.low_dim)
    defaults = Options().as_dict()
    changed = {name: value for name, value in options.as_dict().items() if value != defaults[name]}
    log.info("options   %s", ", ".join(f"{name}={value}" for name, value in changed.items()) or "all defaults")
    log.info("session   %s", "none (--debug)" if session is None else session.path)
    if session is not None and options.log_tfb:
        log.info("watch     tensorboard --logdir %s", session.tensorboard)
    if saved is not None:
        log.info("resumed   %s: round %d, %d epochs completed", source, saved["round"], saved["epoch"])
        now = "fp32" if state.embedder.dtype is None else "bf16"
        if saved.get("precision", now) != now:
            log.warning("the network computes in %s now; the checkpoint's computed in %s", now, saved["precision"])
        for name, value in options.as_dict().items():
            before = saved["options"].get(name, value)
            if before != value:
                log.warning(
                    "option %s is now %s (%s); the checkpoint had %s",
                    name,
                    value,
                    settings.sources[name],
                    before,
                )


def _conclude(state: TrainingState, evaluator: Evaluator, session: Optional[SessionFolder]) -> None:
    log.info("%s", state.history.table(), extra=RESULT)
    accuracy = evaluator.recomputed(state.embedder)
    if accuracy is not None:
        log.info("last network, training features recomputed: %s", accuracy, extra=RESULT)
    if session is not None:
        log.info("checkpoints, log, metrics and TensorBoard files: %s", session.path, extra=RESULT)
