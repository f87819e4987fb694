"""Trains: a new or a resumed run, from opening the images to the evaluation of the finished network."""

import datetime
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Optional

import torch

from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import Position, move_aside, supersede_after
from lib.commands.call import Call, open_images
from lib.commands.start import Fresh, FromWeights, Resumed, resumed_path
from lib.config import Options, Settings, to_yaml
from lib.errors import UserError, one_line
from lib.evaluation.baselines import PRETRAINED, UNTRAINED, PixelRows, baselines, below_pixels, measurable
from lib.evaluation.evaluator import Evaluated, Evaluator
from lib.export.kept_features import position_of
from lib.logger.console import LOGGER, RESULT, close_log, is_terminal, open_log
from lib.nn.winograd import count_winograd
from lib.pretrained.bank import images_to_fit, start_bank
from lib.pretrained.fitting import Fit, fit_lines, load_matching
from lib.report import Report
from lib.runtime.device import describe_device, describe_precision, precision_note
from lib.runtime.packages import has
from lib.session import provenance
from lib.session.folder import SessionFolder, check_own_files
from lib.session.lock import SessionLock
from lib.session.metrics import DIAGNOSTICS_LEGEND, Metrics
from lib.session.records import append_start
from lib.training.planning import time_threads, within_minutes
from lib.training.recorder import Recorder, SessionRecorder
from lib.training.state import TrainingState
from lib.training.trainer import Trainer, check_curriculum, curriculum_note
from models.whitenet import WhiteNet

log = logging.getLogger(LOGGER)


def train(call: Call) -> None:
    """Train from the start of the call to the end of the last round, and evaluate the finished network.

    Raises:
        UserError: too few images for the options, or a checkpoint that does not fit them; --minutes for a resumed run.
        RunError: a loss is not finite, or the session cannot be written.
        Interrupted: a signal asked to stop.
    """
    start, world = call.start, call.world
    pipeline = open_images(call.options, world, call.process)
    state = TrainingState.fresh(call.options, pipeline, world, call.dtype)
    has_minutes = call.options.minutes is not None
    if has_minutes and isinstance(start, Resumed) and call.settings.sources["minutes"] == "command line":
        raise UserError("--minutes chooses the epochs of a new run; for a resumed one give --max-epoch or --max-round")
    is_planned = has_minutes and not isinstance(start, Resumed)
    plan = None
    if is_planned:
        pipeline.check_batches()
        call = _with_timed_threads(call, state, pipeline)  # the speed, and so --minutes, depends on them
        settings, plan = within_minutes(call.settings, state, pipeline, world)
        call = replace(call, settings=settings)
    evaluator = Evaluator(call.options, pipeline, world)
    check_curriculum(call.options, len(pipeline.train))
    pipeline.check_batches()
    fitted = _load(call, state, pipeline)
    world.barrier()  # all have read the checkpoint before the first process moves later ones
    with ExitStack() as at_end:
        session = _open_session(call, at_end) if world.is_first else None
        log_file = session.log if session is not None and call.options.log_file else None
        open_log(log_file, call.options.brief, silent=not world.is_first)
        at_end.callback(close_log)
        at_end.callback(pipeline.close)
        world.long_barrier()  # raises an error at once if the first process cannot write
        if not is_planned:
            call = _with_timed_threads(call, state, pipeline)
        _log_start(call, state, pipeline, evaluator, session, plan)
        if session is not None:
            append_start(session.starts, start_record(call, pipeline))
        is_compared = not isinstance(call.start, Resumed) and evaluator.has_knn and measurable(pipeline, world)
        pixels = PixelRows.of_training(pipeline, world, call.options.size) if is_compared else None
        _initialise(call, state, pipeline, fitted, pixels)
        _measure_baselines(call, state, pipeline, evaluator, pixels)
        trainer = _trainer(call, state, pipeline, evaluator, session)
        results = trainer.run()
        _log_results(state, evaluator, results)
        trainer.recorder.write_results(state, results)


def _load(call: Call, state: TrainingState, pipeline: Pipeline) -> Optional[Fit]:
    """Load the checkpoint or the weights that the run starts from; returns how the weights fit the network."""
    start = call.start
    if isinstance(start, FromWeights):
        return load_matching(state.embedder.network, start.file)
    if isinstance(start, Resumed):
        state.resume(start.checkpoint, str(start.path), call.options, pipeline)
        for part in ("net", "npc", "optimizer", "ANs_discovery"):
            del start.checkpoint[part]  # the whole bank; the state has this process's part
    return None


def _initialise(
    call: Call, state: TrainingState, pipeline: Pipeline, fitted: Optional[Fit], pixels: Optional[PixelRows]
) -> None:
    """Initialise a new run: log how the weights fit, fit whitenet's first filters, and start the memory bank.

    Args:
        pixels: receives the pixels in the pass that fills the bank, if there is one; None: no baselines.
    """
    options, start, network = call.options, call.start, state.embedder.network
    if isinstance(start, Resumed):
        return
    weights = start.file if isinstance(start, FromWeights) else None
    if fitted is not None and weights is not None:
        for line in fit_lines(fitted, weights, options.network):
            log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights   %s", line)
    elif isinstance(network, WhiteNet):
        network.fit_stem(images_to_fit(pipeline, options.size).to(call.world.device))
    first_rows = start_bank(state.bank, options, weights, state.embedder, pipeline, pixels)
    if first_rows is not None:
        log.info("bank      %s", first_rows)


def _measure_baselines(
    call: Call, state: TrainingState, pipeline: Pipeline, evaluator: Evaluator, pixels: Optional[PixelRows]
) -> None:
    """Measure the baselines if `pixels` are given, and log them or those of the checkpoint."""
    options = call.options
    if pixels is not None:
        name = UNTRAINED if isinstance(call.start, Fresh) else PRETRAINED
        knn, size, dim, bank = evaluator.knn[0], options.size, options.low_dim, state.bank.memory
        state.baselines = baselines(pipeline, call.world, knn, state.embedder, size, dim, name, pixels, bank)
    if state.baselines:
        shown = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in state.baselines.items())
        log.info("baselines %s of %s", evaluator.title, shown)


def _trainer(
    call: Call, state: TrainingState, pipeline: Pipeline, evaluator: Evaluator, session: Optional[SessionFolder]
) -> Trainer:
    """The trainer of a run, with a recorder that writes into the session if this process has one."""
    world = call.world
    options = replace(call.options, threads=str(call.threads.threads))  # as checkpoints store it
    labels = None if pipeline.train.labels is None else torch.from_numpy(pipeline.train.labels)
    own = None if options.restart else resumed_path(call.start)
    if session is None:
        recorder = Recorder(options, state, pipeline, evaluator, world)
    else:
        page = _report(session, options, pipeline)
        recorder = SessionRecorder(session, options, state, pipeline, evaluator, world, labels, page, own)
    return Trainer(options, state, pipeline, evaluator, recorder, labels, world, is_resumed=own is not None)


def _report(session: SessionFolder, options: Options, pipeline: Pipeline) -> Optional[Report]:
    """The report of the session, or None where there is none to write."""
    if not options.report:
        return None
    if not has("jinja2"):
        log.warning(
            "report    left out: it needs the package jinja2; pip install jinja2, and --resume %s --report-only "
            "writes it later",
            session.path,
        )
        return None
    return Report(session, pipeline.train, pipeline.fingerprint)


def _with_timed_threads(call: Call, state: TrainingState, pipeline: Pipeline) -> Call:
    """The call with the number of threads that `time_threads` chooses."""
    first, others = call.threads, call.other_programs
    return replace(call, threads=time_threads(first, others, call.options, state, pipeline, call.world, call.process))


def _open_session(call: Call, at_end: ExitStack) -> Optional[SessionFolder]:
    """Open the checkpoint's session, or a new one, locked until `at_end`; None with --debug.

    A resumed session discards the epochs after the checkpoint: they move to superseded/.

    Raises:
        UserError: the checkpoint is in no session, another process holds its lock, or another run has trained further.
    """
    options, start = call.options, call.start
    if options.debug:
        return None
    if isinstance(start, Resumed) and not options.restart:
        saved, source = start.checkpoint, start.path
        session = SessionFolder.of_checkpoint(source)
        if session is None:
            raise UserError(
                f"--resume {source}: the file is not in a session's checkpoint folder, so there is no session to"
                " resume; add --restart to start a new one from it"
            )
        check_own_files(session)
        _lock(session, at_end)
        if Position.of(checkpoint.load(source)) != Position.of(saved):
            raise UserError(f"session {session.path} was resumed elsewhere while this run started; start it again")
        Metrics(session.metrics).rewind(saved["round"], saved["epoch"])
        supersede_after(session, Position.of(saved))
        _supersede_results_after(session, Position.of(saved))
        session.write_config(to_yaml(call.settings))
        return session
    session = SessionFolder.create(options.sess_dir, options.session)
    _lock(session, at_end)
    origin = ""
    if isinstance(start, Resumed):
        origin = f"# Restarted from {one_line(start.path)}; without it these options start a fresh run.\n"
    session.write_config(origin + to_yaml(call.settings))
    return session


def _supersede_results_after(session: SessionFolder, position: Position) -> None:
    """Move final.json and features.npz of a later network than the resumed one to checkpoint/superseded/.

    They would be taken for those of the new network that comes to the same round and epoch.
    """
    for path, read in (
        (session.final, lambda path: json.loads(path.read_text(encoding="utf-8"))),
        (session.features, position_of),
    ):
        try:
            found = read(path) if path.is_file() else {}
            is_later = bool(found) and (int(found["round"]), int(found["epoch"])) > position[:2]
        except (UserError, OSError, ValueError, KeyError, TypeError):
            is_later = True  # damaged
        if is_later:
            move_aside(session, path)


def _lock(session: SessionFolder, at_end: ExitStack) -> None:
    lock = SessionLock(session.path)
    lock.acquire()
    at_end.callback(lock.release)


def _log_start(
    call: Call,
    state: TrainingState,
    pipeline: Pipeline,
    evaluator: Evaluator,
    session: Optional[SessionFolder],
    plan: Optional[str],
) -> None:
    """Log the settings and the environment of this start of the run. `plan`: the epochs of --minutes, or None."""
    options = call.options
    _log_machine(call)
    _log_images(options, pipeline)
    log.info(
        "evaluated %s",
        evaluator.described
        if evaluator.has_knn
        else "without labels: loss, entropy, neighbours, clusters; no accuracy",
    )
    fast = count_winograd(state.embedder.network)
    how = f"; {fast} convolutions by Winograd's filtering in large batches" if fast else ""
    log.info("network   %s, %d features%s", options.network, options.low_dim, how)
    defaults = Options().as_dict()
    changed = {name: value for name, value in options.as_dict().items() if value != defaults[name]}
    log.info("options   %s", ", ".join(f"{name}={value}" for name, value in changed.items()) or "all defaults")
    log.info("session   %s", "none (--debug)" if session is None else session.path)
    if session is not None and options.log_tfb:
        log.info("watch     tensorboard --logdir %s", session.tensorboard)
    if isinstance(call.start, Resumed):
        _log_resumed(call.settings, call.start, pipeline, call.dtype)
    if plan is not None:
        log.info("epochs    %s", plan)
    note = curriculum_note(options)
    if note is not None:
        log.warning("%s", note)


def _log_machine(call: Call) -> None:
    """Log the command, the versions, the device, the precision and the threads."""
    log.info("command   %s", provenance.command_line())
    log.info("code      %s", provenance.git_revision())
    log.info("versions  %s", ", ".join(f"{name} {version}" for name, version in provenance.versions().items()))
    processes = "" if call.world.size == 1 else f"{call.world.size} processes, the first on "
    log.info("device    %s%s; %s", processes, describe_device(call.world.device), describe_precision(call.dtype))
    note = precision_note(call.options.precision, call.dtype)
    if note is not None:
        log.info("          %s", note)
    log.info("threads   %d (%s)", call.threads.threads, call.threads.reason)
    if call.threads.warning:
        log.warning("threads   %s", call.threads.warning)


def _log_images(options: Options, pipeline: Pipeline) -> None:
    """Log the data set with its notes and warnings."""
    test = "no" if pipeline.test is None else f"{len(pipeline.test):,}"
    loaders = f"in {options.workers_num} DataLoader workers" if options.workers_num else "in this process"
    location = "on the device, by the batch" if pipeline.on_device else loaders
    log.info(
        "data      %s: %s training, %s test images; augmented %s",
        pipeline.name,
        f"{len(pipeline.train):,}",
        test,
        location,
    )
    for note in pipeline.notes:
        log.info("          %s", note)
    for caution in pipeline.cautions:
        log.warning("          %s", caution)
    if pipeline.skipped:
        count = len(pipeline.skipped)
        noun = "image" if count == 1 else "images"
        log.warning("data      %s unreadable %s left out (--skip-bad-images)", f"{count:,}", noun)


def _log_resumed(settings: Settings, start: Resumed, pipeline: Pipeline, dtype: Optional[torch.dtype]) -> None:
    """Log the position of a resumed run, and what has changed since its checkpoint."""
    options, saved, source = settings.options, start.checkpoint, start.path
    steps = f" and {saved['step']} steps" if saved.get("step") else ""
    log.info("resumed   %s: round %d, %d epochs%s completed", source, saved["round"], saved["epoch"], steps)
    replaced = pipeline.train.replaced(saved.get("dataset", {}).get("contents"))
    if replaced.paths:
        log.warning("training images have changed since the checkpoint was made: %s", replaced)
    now = "fp32" if dtype is None else "bf16"
    if saved.get("precision", now) != now:
        log.warning("the network computes in %s now; the checkpoint's computed in %s", now, saved["precision"])
    for name, value in options.as_dict().items():
        before = saved["options"].get(name, value)
        if before != value and [before] != value:  # an option may have become a list
            log.warning(
                "option %s is now %s (%s); the checkpoint had %s",
                name,
                value,
                settings.sources[name],
                before,
            )


def start_record(call: Call, pipeline: Pipeline) -> dict[str, Any]:
    """The line of starts.jsonl for one start of a run, plain values."""
    source = resumed_path(call.start)
    return {
        "time": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": provenance.command_line(),
        "code": provenance.git_revision(),
        "versions": provenance.versions(),
        "device": describe_device(call.world.device),
        "precision": describe_precision(call.dtype),
        "processes": call.world.size,
        "dataset": pipeline.name,
        "train_images": len(pipeline.train),
        "fingerprint": pipeline.fingerprint,
        "contents": _checksum(pipeline.contents),
        "test_images": 0 if pipeline.test is None else len(pipeline.test),
        "skipped_images": len(pipeline.skipped),
        "labels": pipeline.train.labels is not None,
        "went_on_from": None if source is None else str(source),
    }


def _checksum(contents: Sequence[int]) -> Optional[str]:
    """A digest of the checksums of sampled image files; None where the fingerprint covers the pixels."""
    return hashlib.blake2b(repr(list(contents)).encode(), digest_size=8).hexdigest() if contents else None


def _log_results(state: TrainingState, evaluator: Evaluator, results: Evaluated) -> None:
    """Log the tables of all rounds and the results of the finished network."""
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    accuracy, of_features = evaluator.knn_accuracy(results), evaluator.knn_feature_accuracy(results)
    if evaluator.has_knn:
        last_row = None if of_features is None else (str(evaluator.space), of_features[0])
        log.info("%s", state.history.table(state.baselines, width, last_row), extra=RESULT)
    log.info("%s\n%s", state.history.diagnostics_table(width), DIAGNOSTICS_LEGEND, extra=RESULT)
    for protocol, each in results:
        prefix = "" if protocol.name == results[0][0].name == "knn" else f"{protocol.name} "
        log.info("last network, training features recomputed: %s%s", prefix, each.summary, extra=RESULT)
        if each.table:
            log.info("%s", each.table, extra=RESULT)
    if accuracy is not None:
        note = below_pixels(max(found[0] for found in (accuracy, of_features) if found is not None), state.baselines)
        if note is not None:
            log.warning("%s", note)
