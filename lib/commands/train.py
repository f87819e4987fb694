"""Training: a new run, or one that is resumed, from the images to the evaluation of the finished network."""

import logging
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import torch

from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.commands.call import Call, open_images
from lib.commands.evaluate import write_files
from lib.commands.start import Fresh, FromWeights, Resumed, resumed_path
from lib.config import Options, to_yaml
from lib.errors import UserError, one_line
from lib.evaluation.baselines import PRETRAINED, UNTRAINED, baselines, below_pixels
from lib.evaluation.evaluator import Judged, Protocols
from lib.logger.console import LOGGER, RESULT, close_log, is_terminal, open_log
from lib.nn.winograd import count_winograd
from lib.pretrained.bank import start_bank
from lib.pretrained.fitting import Fit, fit, report
from lib.report import Report
from lib.runtime.device import describe_device, describe_precision, precision_note
from lib.runtime.packages import has
from lib.session import provenance
from lib.session.folder import SessionFolder, check_own_files
from lib.session.lock import SessionLock
from lib.session.records import Metrics, append_start, write_final
from lib.training.history import UNLABELLED_LEGEND
from lib.training.planning import time_threads, within_minutes
from lib.training.recorder import start_record
from lib.training.state import TrainingState
from lib.training.trainer import Runner, check_curriculum, curriculum_note
from models.whitenet import WhiteNet

STEM_IMAGES = 1_000
"""Training images whose patches whitenet's first filters are fitted to."""

log = logging.getLogger(LOGGER)


def train(call: Call) -> None:
    """Train from the start of the call to the end of the last round, and evaluate the finished network.

    Raises:
        UserError: too few images for the options, or a checkpoint that does not fit them.
        RunError: a loss is not finite, or the session cannot be written.
        Interrupted: a signal asked to stop.
    """
    start, world = call.start, call.world
    pipeline = open_images(call.options, world, call.process)
    state = TrainingState.fresh(call.options, pipeline, world, call.dtype)
    planned = None
    if call.options.minutes is not None and not isinstance(start, Resumed):
        pipeline.check_batches()
        call = _with_timed_threads(call, state, pipeline)  # the rate is that of these
        settings, planned = within_minutes(call.settings, state, pipeline, world)
        call = replace(call, settings=settings)
    protocols = Protocols(call.options, pipeline, world)
    check_curriculum(call.options, len(pipeline.train))
    pipeline.check_batches()
    fitted: Optional[Fit] = None
    if isinstance(start, Resumed):
        state.restore(start.checkpoint, str(start.path), call.options, pipeline)
        for part in ("net", "npc", "optimizer", "ANs_discovery"):
            del start.checkpoint[part]  # of a large data set each process has its share by now, and this was all of it
    elif isinstance(start, FromWeights):
        fitted = fit(state.embedder.network, start.file)
    world.barrier()  # all have read the checkpoint before the first puts later ones aside
    with ExitStack() as at_end:
        session = _open_session(call, at_end) if world.is_first else None
        log_file = session.log if session is not None and call.options.log_file else None
        open_log(log_file, call.options.brief, silent=not world.is_first)
        at_end.callback(close_log)
        at_end.callback(pipeline.close)
        world.long_barrier()  # here it is noticed at once if the first cannot write
        if planned is None:
            call = _with_timed_threads(call, state, pipeline)
        options = replace(call.options, threads=str(call.threads.threads))  # as checkpoints keep it
        _introduce(call, state, pipeline, protocols, session)
        if planned is not None:
            log.info("epochs    %s", planned)
        if session is not None:
            append_start(session.starts, start_record(pipeline, world, state.embedder.dtype, resumed_path(start)))
        if fitted is not None:
            for line in report(fitted, start.file, options.network):
                log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights   %s", line)
        if isinstance(start, Fresh) and isinstance(state.embedder.network, WhiteNet):
            state.embedder.network.fit_stem(pipeline.sample(STEM_IMAGES).to(world.device))
        if not isinstance(start, Resumed):
            weights = start.file if isinstance(start, FromWeights) else None
            first_rows = start_bank(state.bank, options, weights, state.embedder, pipeline)
            if first_rows is not None:
                log.info("bank      %s", first_rows)
        note = curriculum_note(options)
        if note is not None:
            log.warning("%s", note)
        if not isinstance(start, Resumed) and protocols.can_vote:
            name = UNTRAINED if isinstance(start, Fresh) else PRETRAINED
            vote, size, dim = protocols.votes[0], options.size, options.low_dim
            state.baselines = baselines(pipeline, world, vote, state.embedder, size, dim, name)
        if state.baselines:
            shown = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in state.baselines.items())
            log.info("baselines %s of %s", protocols.title, shown)
        labels = None if pipeline.train.labels is None else torch.from_numpy(pipeline.train.labels)
        own = None if options.restart else resumed_path(start)
        wanted = session is not None and options.report
        if wanted and not has("jinja2"):
            wanted = False
            log.warning(
                "report    left out: it needs the package jinja2; pip install jinja2, and --resume %s --report-only "
                "writes it later",
                session.path,
            )
        page = Report(session, pipeline.train, pipeline.fingerprint) if wanted else None
        judged = Runner(options, state, pipeline, protocols, session, labels, world, own, page).run()
        _conclude(state, protocols, judged, session, page)


def _with_timed_threads(call: Call, state: TrainingState, pipeline: Pipeline) -> Call:
    """The same call with the number of threads that `time_threads` chooses."""
    first, others = call.threads, call.other_programs
    return replace(call, threads=time_threads(first, others, call.options, state, pipeline, call.world, call.process))


def _open_session(call: Call, at_end: ExitStack) -> Optional[SessionFolder]:
    """The session of the checkpoint when going on, a new one otherwise, none with --debug. Ours until `at_end`."""
    options, start = call.options, call.start
    if options.debug:
        return None
    if isinstance(start, Resumed) and not options.restart:
        saved, source = start.checkpoint, start.path
        session = SessionFolder.of_checkpoint(source)
        if session is None:
            raise UserError(
                f"--resume {source}: the file is not in a session's checkpoint folder, so there is no session to go on"
                " in; add --restart to start a new one from it"
            )
        check_own_files(session)
        _lock(session, at_end)
        if _place_of(source) != _place(saved):
            raise UserError(f"session {session.path} has gone on while this run started; start it again")
        Metrics(session.metrics).rewind(saved["round"], saved["epoch"])
        session.set_aside_after(saved["round"], _place(saved), _place_of)
        session.write_config(to_yaml(call.settings))
        return session
    session = SessionFolder.create(options.sess_dir, options.session)
    _lock(session, at_end)
    origin = ""
    if isinstance(start, Resumed):
        origin = f"# This run went on from {one_line(start.path)}; without it these options start anew.\n"
    session.write_config(origin + to_yaml(call.settings))
    return session


def _lock(session: SessionFolder, at_end: ExitStack) -> None:
    lock = SessionLock(session.path)
    lock.take()
    at_end.callback(lock.release)


def _place(saved: dict[str, Any]) -> tuple[int, int]:
    return saved["epoch"], saved.get("step", 0)


def _place_of(path: Path) -> tuple[int, int]:
    return _place(checkpoint.load(path))


def _introduce(
    call: Call, state: TrainingState, pipeline: Pipeline, protocols: Protocols, session: Optional[SessionFolder]
) -> None:
    options, world, threads, start = call.options, call.world, call.threads, call.start
    log.info("command   %s", provenance.command_line())
    log.info("code      %s", provenance.git_revision())
    log.info("versions  %s", ", ".join(f"{name} {version}" for name, version in provenance.versions().items()))
    processes = "" if world.size == 1 else f"{world.size} processes, the first on "
    log.info("device    %s%s; %s", processes, describe_device(world.device), describe_precision(state.embedder.dtype))
    note = precision_note(options.precision, state.embedder.dtype)
    if note is not None:
        log.info("          %s", note)
    log.info("threads   %d (%s)", threads.threads, threads.reason)
    if threads.warning:
        log.warning("threads   %s", threads.warning)
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
    for note in pipeline.notes:
        log.info("          %s", note)
    for caution in pipeline.cautions:
        log.warning("          %s", caution)
    if pipeline.skipped:
        count = len(pipeline.skipped)
        noun = "image" if count == 1 else "images"
        log.warning("data      %s unreadable %s left out (--skip-bad-images)", f"{count:,}", noun)
    log.info(
        "judged    %s",
        protocols.described
        if protocols.can_vote
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
    if isinstance(start, Resumed):
        saved, source = start.checkpoint, start.path
        steps = f" and {saved['step']} steps" if saved.get("step") else ""
        log.info("resumed   %s: round %d, %d epochs%s completed", source, saved["round"], saved["epoch"], steps)
        replaced = pipeline.train.replaced(saved.get("dataset", {}).get("contents"))
        if replaced.paths:
            log.warning("training images have changed since the checkpoint was made: %s", replaced)
        now = "fp32" if state.embedder.dtype is None else "bf16"
        if saved.get("precision", now) != now:
            log.warning("the network computes in %s now; the checkpoint's computed in %s", now, saved["precision"])
        for name, value in options.as_dict().items():
            before = saved["options"].get(name, value)
            if before != value and [before] != value:  # an option may have become a list
                log.warning(
                    "option %s is now %s (%s); the checkpoint had %s",
                    name,
                    value,
                    call.settings.sources[name],
                    before,
                )


def _conclude(
    state: TrainingState,
    protocols: Protocols,
    judged: Judged,
    session: Optional[SessionFolder],
    report: Optional[Report],
) -> None:
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    accuracy, of_features = protocols.first_vote(judged), protocols.first_feature_vote(judged)
    if protocols.can_vote:
        last_row = None if of_features is None else (str(protocols.space), of_features[0])
        log.info("%s", state.history.table(state.baselines, width, last_row), extra=RESULT)
    log.info("%s\n%s", state.history.unlabelled_table(width), UNLABELLED_LEGEND, extra=RESULT)
    for protocol, findings in judged:
        who = "" if protocol.name == judged[0][0].name == "knn" else f"{protocol.name} "
        log.info("last network, training features recomputed: %s%s", who, findings.summary, extra=RESULT)
        if findings.table:
            log.info("%s", findings.table, extra=RESULT)
    if accuracy is not None:
        note = below_pixels(max(found[0] for found in (accuracy, of_features) if found is not None), state.baselines)
        if note is not None:
            log.warning("%s", note)
    if session is not None and accuracy is not None:
        features = None
        if of_features is not None:
            told, (top1, top5) = protocols.space, of_features
            features = {"level": told.level, "whitened": told.whitened, "top1": top1, "top5": top5}
        write_final(session.final, state.round, state.epoch, *accuracy, state.baselines, features)
    if report is not None:
        report.write_if_possible()
    if session is not None:
        for path in write_files(judged, session.path):
            log.info("written: %s", path, extra=RESULT)
        log.info("checkpoints, log, metrics and TensorBoard files: %s", session.path, extra=RESULT)
