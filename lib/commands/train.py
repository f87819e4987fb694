"""What `main.py` does once the options are known: train, go on, or evaluate."""

import dataclasses
import logging
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import torch

from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.commands.inputs import check_same_call, open_images
from lib.commands.results import embed_pictures, export_results, take_network
from lib.config import Options, Settings, to_yaml
from lib.distributed import process_group as group
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import PeerFailure, RunError, UnreadableImage, UserError, one_line
from lib.evaluation.baselines import PRETRAINED, UNTRAINED, baselines, below_pixels
from lib.evaluation.evaluator import Judged, Protocols
from lib.export.result_folder import check_free
from lib.logger.console import LOGGER, RESULT, close_log, is_terminal, open_log
from lib.nn.embedder import Embedder
from lib.nn.winograd import count_winograd
from lib.pretrained.bank import start_bank
from lib.pretrained.fitting import Fit, fit, report
from lib.pretrained.weights_file import WeightsFile
from lib.report import Report
from lib.runtime.determinism import choose_algorithms
from lib.runtime.device import choose_precision, describe_device, describe_precision, precision_note
from lib.runtime.memory import is_out_of_memory, keep_freed_memory
from lib.runtime.packages import has
from lib.runtime.threads import OtherPrograms
from lib.session import provenance
from lib.session.folder import SessionFolder, check_own_files
from lib.session.lock import SessionLock
from lib.session.records import Metrics, append_start, write_final
from lib.training.history import UNLABELLED_LEGEND
from lib.training.planning import Choice, set_threads, time_threads, within_minutes
from lib.training.recorder import start_record
from lib.training.state import TrainingState
from lib.training.trainer import Runner, check_curriculum, curriculum_note
from models.whitenet import WhiteNet

STEM_IMAGES = 1_000
"""Training images whose patches whitenet's first filters are fitted to."""

log = logging.getLogger(LOGGER)


def execute(
    settings: Settings,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    place: ProcessInfo,
    weights: Optional[WeightsFile] = None,
    world: Optional[World] = None,
) -> None:
    """Run the command.

    Args:
        settings: the merged options.
        saved: the checkpoint to go on from, or None to start.
        source: the file it came from.
        place: of this process among those of the run.
        weights: what --pretrained names, or None.
        world: the processes of the run, if they are joined already.
    """
    others = OtherPrograms()
    choose_algorithms(settings.options.deterministic)
    world = group.join(settings.options.gpus, place) if world is None else world
    threads = set_threads(settings, world, place)
    keep_freed_memory()
    try:
        dtype = choose_precision(settings.options.precision, world.device)
        check_same_call(world, settings.options, dtype, saved, weights)
        _execute(settings, saved, source, weights, world, place, dtype, threads, others)
    except UnreadableImage as error:
        if settings.options.skip_bad_images:
            raise
        raise UserError(f"{error}, or leave out all such files with --skip-bad-images") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            reason = (str(error).strip().splitlines() or ["nothing more is known"])[0]
            raise RunError(
                f"out of memory on {world.device} ({reason}); lower --batch-size, "
                "--discovery-memory, --size or --low-dim, or add --augment-on workers or --no-winograd; what was saved "
                "goes on with --resume"
            ) from error
        if world.size == 1 or isinstance(error, MemoryError) or not group.is_peer_failure(error):
            raise
        raise PeerFailure(f"{str(error).splitlines()[0]} (what another process says comes first)") from error


def _execute(
    settings: Settings,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    weights: Optional[WeightsFile],
    world: World,
    place: ProcessInfo,
    dtype: Optional[torch.dtype],
    threads: Choice,
    others: OtherPrograms,
) -> None:
    options = settings.options
    torch.backends.cuda.matmul.allow_tf32 = False  # loss, bank and entropies are float32 in any case
    torch.backends.cudnn.allow_tf32 = options.tf32
    if options.embed is not None:
        embed_pictures(options, saved, source, weights, world)
        return
    if options.export is not None:
        check_free("--export", Path(options.export), options.overwrite)  # before a large data set is looked through
    pipeline = open_images(options, world, place)
    if options.report_only:
        if world.is_first:
            _report(pipeline, source)
        return
    state = TrainingState.fresh(options, pipeline, world, dtype)
    if options.export is not None:
        export_results(options, pipeline, state.embedder, saved, source, weights, world)
        return
    planned = None
    if options.minutes is not None and saved is None and not options.test_only:
        pipeline.check_batches()
        threads = time_threads(threads, others, options, state, pipeline, world, place)  # the rate is that of these
        settings, planned = within_minutes(settings, state, pipeline, world)
        options = settings.options
    protocols = Protocols(options, pipeline, world)
    if options.test_only:
        take_network(state.embedder.network, options, saved, source, weights)
        _test(settings, pipeline, protocols, state.embedder, saved, source, world)
        return
    check_curriculum(options, len(pipeline.train))
    pipeline.check_batches()
    fitted: Optional[Fit] = None
    if saved is not None:
        state.restore(saved, str(source), options, pipeline)
        for part in ("net", "npc", "optimizer", "ANs_discovery"):
            del saved[part]  # of a large data set each process has its share by now, and this was all of it
    elif weights is not None:
        fitted = fit(state.embedder.network, weights)
    world.barrier()  # all have read the checkpoint before the first puts later ones aside
    with ExitStack() as at_end:
        session = _open_session(settings, saved, source, at_end) if world.is_first else None
        log_file = session.log if session is not None and options.log_file else None
        open_log(log_file, options.brief, silent=not world.is_first)
        at_end.callback(close_log)
        at_end.callback(pipeline.close)
        world.long_barrier()  # here it is noticed at once if the first cannot write
        if planned is None:
            threads = time_threads(threads, others, options, state, pipeline, world, place)
        options = dataclasses.replace(options, threads=str(threads.threads))  # as checkpoints keep it
        _introduce(settings, state, pipeline, protocols, world, session, saved, source, threads)
        if planned is not None:
            log.info("epochs    %s", planned)
        if session is not None:
            append_start(session.starts, start_record(pipeline, world, state.embedder.dtype, source))
        if fitted is not None:
            for line in report(fitted, weights, options.network):
                log.log(logging.WARNING if fitted.misfits else logging.INFO, "weights   %s", line)
        if saved is None and weights is None and isinstance(state.embedder.network, WhiteNet):
            state.embedder.network.fit_stem(pipeline.sample(STEM_IMAGES).to(world.device))
        first_rows = None if saved is not None else start_bank(state.bank, options, weights, state.embedder, pipeline)
        if first_rows is not None:
            log.info("bank      %s", first_rows)
        note = curriculum_note(options)
        if note is not None:
            log.warning("%s", note)
        if saved is None and protocols.can_vote:
            name = UNTRAINED if weights is None else PRETRAINED
            vote, size, dim = protocols.votes[0], options.size, options.low_dim
            state.baselines = baselines(pipeline, world, vote, state.embedder, size, dim, name)
        if state.baselines:
            shown = ", ".join(f"{name} {100 * top1:.2f} %" for name, top1 in state.baselines.items())
            log.info("baselines %s of %s", protocols.title, shown)
        labels = None if pipeline.train.labels is None else torch.from_numpy(pipeline.train.labels)
        own = None if options.restart else source
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


def _test(
    settings: Settings,
    pipeline: Pipeline,
    protocols: Protocols,
    embedder: Embedder,
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    world: World,
) -> None:
    """`--test-only`: features of training and test images recomputed and judged.

    The results are printed. Of the run nothing is changed; files with more than fits a terminal go to its session.
    """
    protocols.check_all()
    session = None if source is None or settings.options.debug else SessionFolder.of_checkpoint(source)
    data = {} if saved is None else saved.get("dataset", {})
    other = data.get("fingerprint", pipeline.fingerprint) != pipeline.fingerprint
    if world.is_first and (other or pipeline.train.replaced(data.get("contents")).are_others):
        session = None
        print(
            f"{source}: trained on other images ({data.get('name')}, {data.get('size')}) than these ({pipeline.name}, "
            f"{len(pipeline.train)}), which are prepared as those were; nothing is written into its session"
        )
    if session is not None:
        check_own_files(session)
    judged, _ = protocols.finished(embedder)
    if not world.is_first:
        return
    written = [] if session is None else _written(judged, session.path)
    for line in (*pipeline.notes, *pipeline.cautions):
        print(f"{pipeline.name}: {one_line(line)}")
    name = settings.options.pretrained if saved is None else f"{source}: round {saved['round']}, epoch {saved['epoch']}"
    for protocol, findings in judged:
        print(f"{name}: {protocol.name} {findings.summary} (training features recomputed)")
        if findings.table:
            print(findings.table)
    for path in written:
        print(f"written: {path}")


def _written(judged: Judged, folder: Path) -> list[Path]:
    return [path for _, findings in judged for path in findings.write(folder)]


def _report(pipeline: Pipeline, source: Path) -> None:
    """`--report-only`: the report of the checkpoint's session, written again from its files."""
    session = SessionFolder.of_checkpoint(source)
    if session is None:
        raise UserError(f"--report-only: {source} is not in a session's checkpoint folder, so there is no session")
    check_own_files(session)
    seconds = Report(session, pipeline.train, pipeline.fingerprint).write()
    pipeline.close()
    print(f"{session.report}: written in {seconds:.1f} s")


def _open_session(
    settings: Settings, saved: Optional[dict[str, Any]], source: Optional[Path], at_end: ExitStack
) -> Optional[SessionFolder]:
    """The session of the checkpoint when going on, a new one otherwise, none with --debug. Ours until `at_end`."""
    options = settings.options
    if options.debug:
        return None
    if saved is not None and not options.restart:
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
        session.write_config(to_yaml(settings))
        return session
    session = SessionFolder.create(options.sess_dir, options.session)
    _lock(session, at_end)
    origin = ""
    if source is not None:
        origin = f"# This run went on from {one_line(source)}; without it these options start anew.\n"
    session.write_config(origin + to_yaml(settings))
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
    settings: Settings,
    state: TrainingState,
    pipeline: Pipeline,
    protocols: Protocols,
    world: World,
    session: Optional[SessionFolder],
    saved: Optional[dict[str, Any]],
    source: Optional[Path],
    threads: Choice,
) -> None:
    options = settings.options
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
    if saved is not None:
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
                    settings.sources[name],
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
        for path in _written(judged, session.path):
            log.info("written: %s", path, extra=RESULT)
        log.info("checkpoints, log, metrics and TensorBoard files: %s", session.path, extra=RESULT)
