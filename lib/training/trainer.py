"""The curriculum: round 0 learns instances, every later round starts by discovering anchors anew."""

import logging
import math
import shlex
import signal
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.checkpoint.saver import AsyncCheckpointSaver, CheckpointSaver, Position
from lib.compat import HAS_CAPTURE_BESIDE_THREADS
from lib.config import Options
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import Interrupted, RunError, UserError
from lib.evaluation.evaluator import Judged, Protocol, Protocols
from lib.evaluation.features import Subject
from lib.export.kept_features import KeptFeatures
from lib.logger.console import LOGGER, RESULT
from lib.logger.progress import Progress
from lib.logger.tensorboard import TensorBoardWriter
from lib.method.discovery import anchor_count, discover
from lib.method.neighbourhoods import Neighbourhoods
from lib.report import Report
from lib.runtime.stop_signals import PATIENCE, StopSignals
from lib.session.folder import SessionFolder
from lib.session.records import Metrics
from lib.training.cuda_graph import CapturedStep, can_be_captured
from lib.training.epoch import NotFiniteError, StepFunction, Underway, train_epoch, with_same_masks
from lib.training.history import RoundSummary, sizes
from lib.training.optim import start_schedule
from lib.training.recorder import Observer, RateWatch, write_note
from lib.training.state import TrainingState, not_finite
from lib.training.step import Step
from lib.training.stopping import Pauses, SaveEvery

log = logging.getLogger(LOGGER)


class Runner:
    """Drives a state through the rounds that are left.

    Args:
        options: the merged options.
        state: where the run stands.
        pipeline: the images.
        protocols: judge the network, after epochs and at the end.
        session: where to write, or None to write nothing.
        labels: (N,) training labels, for the reported consistency only; or None.
        world: the processes of the run. All go through the same steps; `session` belongs to the first of them.
        source: the session's checkpoint that the state was taken from, if it was.
        report: written at the end of each round; or None.
    """

    def __init__(
        self,
        options: Options,
        state: TrainingState,
        pipeline: Pipeline,
        protocols: Protocols,
        session: Optional[SessionFolder],
        labels: Optional[Tensor],
        world: World,
        source: Optional[Path] = None,
        report: Optional[Report] = None,
    ):
        self.options, self.session, self.labels, self.world = options, session, labels, world
        self.state, self.pipeline, self.protocols = state, pipeline, protocols
        self.step: StepFunction = Step(state.embedder, state.bank, state.optimizer, options.npc_temperature)
        # pages are pinned in a thread of the loader, which an older PyTorch does not bear during a capture
        undisturbed = pipeline.on_device or HAS_CAPTURE_BESIDE_THREADS
        wanted = world.device.type == "cuda" and options.cuda_graph and world.size == 1
        if wanted and undisturbed and can_be_captured(state.embedder.network, state.optimizer):
            self.step = CapturedStep(self.step)
        self.metrics = None if session is None else Metrics(session.metrics)
        folder = session.tensorboard if session is not None and options.log_tfb else None
        self.board = TensorBoardWriter(folder, options.max_epoch, (state.round, state.epoch))
        self.board.start(options.as_dict(), protocols.can_vote)
        self.observer = Observer(options, pipeline, labels, world, self.board)
        self.report = report
        # a process that is forked while a thread is at work may take over a lock that nobody opens
        kind = CheckpointSaver if pipeline.starts_processes else AsyncCheckpointSaver
        self.checkpoints = None if session is None else kind(session, options.keep)
        self._after_epoch = source is not None and not options.debug and state.epoch > 0 and state.underway.step == 0
        if self.checkpoints is not None and source is not None:
            current, finished = state.history.current, state.underway.step == 0
            is_best = finished and state.epoch > 0 and current.best_epoch == state.epoch
            place = Position(state.round, state.epoch, state.underway.step)
            self.checkpoints.go_on_from(source, place, current.anchors, is_best)
        launched = ProcessInfo.here().launched
        self.stop = StopSignals(launched, not world.is_first, lambda: pipeline.waiting_since, self._stopped_in_wait)
        self.pauses = Pauses(SaveEvery() if options.debug else SaveEvery.parse(options.save_every), self.stop, world)
        images = len(pipeline.train)
        rounds_left = max(0, options.max_round - state.round - 1)
        epochs_left = rounds_left * options.max_epoch + max(0, options.max_epoch - state.epoch)
        images_left = epochs_left * images - state.underway.images
        total = (options.max_round - options.first_round) * options.max_epoch * images
        self.rate = RateWatch()
        self.progress = Progress(total, max(0, total - images_left), quiet=options.brief or not world.is_first)

    def run(self) -> Judged:
        """Train to the end of the last round, and judge the finished network. Rounds complete in the state are not
        repeated.

        Raises:
            Interrupted: a signal asked to stop; the run was saved where it stood.
            RunError: a checkpoint could not be written, or a loss, a gradient or a weight is not finite.
        """
        try:
            with self.stop:
                if self._after_epoch:
                    self._judge_what_is_missing()
                for round_number in range(self.state.round, self.options.max_round):
                    begun = self.state.epoch > 0 or self.state.underway.step > 0
                    if round_number > self.state.round or not begun:
                        self._start_round(round_number)
                    self._finish_round()
                self._settle()
                self.stop.at_once(self._stopped_while_judging)
                judged, subject = self.protocols.finished(self.state.embedder)
                self._note(judged, but_votes=True)
                self._keep_features(subject)
                self.board.finish()
                return judged
        finally:
            self.progress.close()
            self.board.close()
            if self.checkpoints is not None:
                self.checkpoints.close()

    def _keep_features(self, subject: Subject) -> None:
        """The features of the finished network, where the bank cannot stand for them."""
        if subject.space.is_plain or self.options.debug:
            return
        train = subject.all_train()
        if self.session is not None:
            KeptFeatures(subject.space, train, self.state.round, self.state.epoch).write(self.session.features)

    def _start_round(self, round_number: int) -> None:
        """Choose anchors and neighbours from the bank as the round before left it."""
        options, state = self.options, self.state
        started = time.perf_counter()
        if round_number == 0:
            found = Neighbourhoods.none(len(self.pipeline.train), options.ANs_size, self.world.device)
        else:
            found = discover(
                state.bank.memory,
                round_number,
                options.select_rate,
                options.ANs_size,
                options.npc_temperature,
                options.knn_backend,
                self.labels,
                state.bank.shard,
                options.discovery_memory * 2**20,
            )
            log.info("round %d: %s, found in %.1f s", round_number, _describe(found), time.perf_counter() - started)
        state.neighbourhoods, state.round, state.epoch = found, round_number, 0
        state.history.start_round(round_number, len(found.anchor_indexes), found.consistency)
        state.history.current.seconds = time.perf_counter() - started
        entropy = found.entropy.cpu().numpy() if round_number > 0 else None
        self.board.discovery(round_number, len(found.anchor_indexes), found.consistency, entropy)
        self.observer.discovery(round_number, found)

    def _finish_round(self) -> None:
        """Train the epochs of the round that are left. The learning rate starts anew in every round."""
        options, state = self.options, self.state
        if state.epoch >= options.max_epoch:
            return
        schedule = start_schedule(options, state.optimizer, state.round, state.epoch)
        while state.epoch < options.max_epoch:
            self._train_one_epoch()
            schedule.step()
            if (state.round, state.epoch) == (options.first_round, 1) and options.max_epoch > 1:
                self._write_report()  # the round may take days
        log.info("%s", _closing_line(state.history.current, self.protocols.title), extra=RESULT)
        self._write_report()

    def _write_report(self) -> None:
        """From the files of the session."""
        if self.report is not None:
            self._settle()
            self.report.write_if_possible()

    def _train_one_epoch(self) -> None:
        options, state = self.options, self.state
        started = time.perf_counter()
        order = self.pipeline.epoch_order(state.round, state.epoch)
        begun, state.underway = state.underway, Underway()
        self.pauses.saved(begun.step)
        self.progress.label(f"round {state.round}/{options.max_round - 1} epoch {state.epoch + 1}/{options.max_epoch}")
        rate = state.optimizer.param_groups[0]["lr"]
        batches = self.pipeline.train_batches(order, state.round, state.epoch, start=begun.step)
        sizes, place = tuple(len(batch) for batch in order), (state.round, state.epoch)
        network = state.embedder.network
        batches = with_same_masks(batches, network, self.world, sizes, begun.step, options.seed, *place)
        state.embedder.train()
        self.rate.resume()
        try:
            result = train_epoch(
                self.step,
                state.neighbourhoods,
                batches,
                sizes,
                options.iter_size,
                options.display_freq,
                self._advance,
                begun,
                self._pause,
            )
        except NotFiniteError as error:
            raise self._not_finite(error, order) from error
        state.embedder.sync_buffers()
        state.epoch += 1
        self.progress.note("looking at what was learnt")
        votes = {"knn_top1": None, "knn_top5": None}
        votes.update(self.protocols.with_bank(state.embedder, state.bank.memory, state.epoch))
        seen = self.observer.after_epoch(state)
        top1 = votes["knn_top1"]
        seconds = begun.seconds + time.perf_counter() - started
        is_best = state.history.current.add_epoch(state.epoch, top1, seconds)
        state.history.observe(result.loss, seen)
        record = {
            "round": state.round,
            "epoch": state.epoch,
            "anchors": state.history.current.anchors,
            "consistency": state.history.current.consistency,
            "loss": result.loss,
            "lr": rate,
            **votes,
            **seen,
            "images_per_second": result.images / result.rate_seconds,
            "seconds": seconds,
        }
        self._write(record, top1, is_best)
        log.info(
            "round %d epoch %d/%d  loss %.4f  lr %.4g  %s%.0f images/s  %.1f s",
            state.round,
            state.epoch,
            options.max_epoch,
            result.loss,
            rate,
            "" if top1 is None else f"kNN {100 * top1:.2f} %  ",
            record["images_per_second"],
            seconds,
        )
        self._judge(self.protocols.due(state.round, state.epoch))
        signal_number = self.pauses.after_epoch()
        if signal_number is not None:
            raise self._interrupted(signal_number)

    def _judge(self, protocols: Sequence[Protocol]) -> None:
        """Judge the network after an epoch, which is on disk by then."""
        if not protocols:
            return
        self._settle()
        state = self.state
        judged = self.protocols.judged(protocols, state.embedder)
        self._note(judged)
        for protocol, findings in judged:
            log.info(
                "round %d epoch %d/%d  %s: %s",
                state.round,
                state.epoch,
                self.options.max_epoch,
                protocol.name,
                findings.summary,
            )

    def _judge_what_is_missing(self) -> None:
        """A process that was killed after an epoch's checkpoint may have left its slower protocols undone."""
        due = self.protocols.due(self.state.round, self.state.epoch)
        if not due:
            return
        known = {} if self.metrics is None else self.metrics.last()
        there = torch.tensor([int(protocol.is_in(known)) for protocol in due], device=self.world.device)
        self.world.broadcast(there)  # the file is the first process's
        self._judge([protocol for protocol, is_there in zip(due, there.tolist()) if not is_there])

    def _pause(self, step: int, underway: Callable[[], Underway]) -> None:
        """Between two optimiser steps: save if it is time, and stop if somebody wishes it."""
        decision = self.pauses.at_step(step)
        if not decision.save:
            return
        self.state.underway = underway()
        if not self.options.debug:
            self._save(None, is_best=False)
        if decision.stop is not None:
            raise self._interrupted(decision.stop)
        self.state.underway = Underway()
        self.pauses.saved(step)
        self.rate.resume()

    def _advance(self, images: int, loss: float) -> None:
        self.progress.advance(images, loss)
        slow = self.rate.see(images)
        if slow is not None:
            has_threads = self.world.device.type == "cpu" and torch.get_num_threads() > 1
            log.warning(
                "the run learns from %.0f images/s, less than a third of the %.0f before; other programs may be at "
                "work here: end some of them%s",
                *slow,
                ", or stop the run and resume it with --threads 1" if has_threads else "",
            )

    def _interrupted(self, signal_number: int) -> Interrupted:
        state, name = self.state, signal.Signals(signal_number).name
        where = f"{name}: stopped in round {state.round} after {state.epoch} epochs and {state.underway.step} steps"
        if self.session is None:
            return Interrupted(signal_number, f"{where}; nothing was saved (--debug)", by_all=True)
        message = f"{where}, saved as {self.checkpoints.last}; go on with: {self._go_on()}"
        return Interrupted(signal_number, message, by_all=True)

    def _stopped_while_judging(self, signal_number: signal.Signals) -> Interrupted:
        last = None if self.checkpoints is None else self.checkpoints.last
        where = f"{signal_number.name}: stopped while the finished network was judged"
        if last is None:
            return Interrupted(signal_number, f"{where}; nothing was saved (--debug)")
        return Interrupted(
            signal_number,
            f"{where}; it is saved as {last}; judge it with: {self._go_on()}",
        )

    def _stopped_in_wait(self, signal_number: signal.Signals) -> Interrupted:
        where = f"{signal_number.name}: stopped while no batch of images came for {PATIENCE:.0f} s"
        last = None if self.checkpoints is None else self.checkpoints.last
        if last is None:
            return Interrupted(signal_number, f"{where}; nothing had been saved")
        return Interrupted(signal_number, f"{where}; {last} was saved before; go on with: {self._go_on()}")

    def _go_on(self) -> str:
        """The command. Numbers of GPUs do not come back with a checkpoint."""
        gpus = self.options.gpus
        numbers = "" if gpus in ("auto", "cpu") else f" --gpus {gpus}"
        return f"python3 main.py --resume {shlex.quote(str(self.session.path))}{numbers}"

    def _not_finite(self, error: NotFiniteError, order: Sequence[Tensor]) -> RunError:
        """Puts down which images it was, and says where."""
        state, found, iter_size = self.state, error.found, self.options.iter_size
        # a gradient is that of all batches of its optimiser step
        start = found.step // iter_size * iter_size if found.what == "gradient" else found.step
        rows = torch.cat(list(order[start : found.step + 1]))
        place = (state.round, state.epoch + 1, found.step + 1)
        images = f"images {', '.join(map(str, rows[:5].tolist()))}, ..."
        if self.session is not None:
            try:
                files = self.pipeline.files_of(rows.tolist())
                images = f"the images are listed in {write_note(self.session.path, *place, found.what, rows, files)}"
            except OSError as failure:
                images += f" (the list of all could not be written: {failure.strerror})"
        return RunError(
            f"the {found.what} is not finite in round {place[0]}, epoch {place[1]}, step {place[2]}; {images}; "
            f"{self._last_good()}; try a lower --base-lr or a higher --npc-temperature"
        )

    def _last_good(self) -> str:
        try:
            last = None if self.checkpoints is None else self.checkpoints.last
        except RunError as error:  # said beside what ends the run, not in its place
            return str(error)
        return "there is no checkpoint from before" if last is None else f"the last good checkpoint is {last}"

    def _note(self, judged: Judged, but_votes: bool = False) -> None:
        """Add findings to the metrics of the last epoch and to TensorBoard; `but_votes`: those are of another kind."""
        for protocol, findings in judged:
            if self.session is None or (but_votes and protocol in self.protocols.votes):
                continue
            self.metrics.amend_last(findings.scalars)
            self.board.scalars(self.state.round, self.state.epoch, findings.scalars)

    def _write(self, record: dict[str, Any], top1: Optional[float], is_best: bool) -> None:
        """Metrics and TensorBoard, then the checkpoint: a resume from it finds the lines of its own epoch written."""
        if self.options.debug:
            return
        if self.session is not None:
            self.metrics.append(record)
            history = self.state.history
            self.board.epoch(record, history.current.knn_best, history.best_top1)
        self._save(top1, is_best)

    def _settle(self) -> None:
        """What was saved is on disk from here on."""
        if self.checkpoints is not None:
            self.checkpoints.settle()

    def _save(self, top1: Optional[float], is_best: bool) -> None:
        """A checkpoint: every process brings its part of the bank, the first one writes."""
        self._settle()  # before there is a second copy of everything
        state = self.state
        memory = state.bank.gather_to_first()
        if self.session is None or memory is None:
            return
        saved = state.checkpoint(memory, self.options, self.pipeline, self.session.name, top1)
        part = not_finite(saved)
        if part is not None:
            raise RunError(
                f"a number in the {part} is not finite after {state.epoch} epochs and {state.underway.step} steps of "
                f"round {state.round}, so nothing was saved; {self._last_good()}; try a lower --base-lr"
            )
        place = Position(state.round, state.epoch, state.underway.step)
        self.checkpoints.save(saved, place, state.history.current.anchors, is_best)


def check_curriculum(options: Options, images: int) -> None:
    """Whether every round has anchors and every anchor its neighbours.

    Raises:
        UserError: there are too few images for the options.
    """
    if options.max_round > 1 and options.ANs_size >= images:
        raise UserError(f"--ANs-size {options.ANs_size}: an anchor has only {images - 1} other images to choose from")
    if options.max_round > 1 and anchor_count(images, options.select_rate, 1) == 0:
        raise UserError(f"--ANs-select-rate {options.ANs_select_rate}: no anchor among {images} images in round 1")


def curriculum_note(options: Options) -> Optional[str]:
    """What is worth a warning about the rounds: that of several all images are anchors."""
    rate, last = options.select_rate, options.max_round - 1
    complete = math.ceil(1 / rate) if isinstance(rate, Fraction) else math.ceil(1 / Fraction(repr(rate)))
    if complete >= last:
        return None
    return (
        f"rounds {complete} to {last} take all images as anchors (--ANs-select-rate {options.ANs_select_rate}); "
        f"--ANs-select-rate auto would be 1/{last}, so that only the last round does, as in the paper"
    )


def _closing_line(summary: RoundSummary, judge: str) -> str:
    """What a round came to, in one line."""
    parts = [f"{summary.anchors} anchors"]
    if summary.consistency is not None:
        parts.append(f"consistency {100 * summary.consistency:.2f} %")
    if summary.knn_last is not None:
        parts.append(f"{judge} {100 * summary.knn_last:.2f} % last, {100 * summary.knn_best:.2f} % best")
    parts.append(f"loss {summary.loss:.3f}")
    if summary.entropy is not None:
        parts.append(f"entropy {summary.entropy:.3f}")
    if summary.neighbours_kept is not None:
        parts.append(f"{100 * summary.neighbours_kept:.1f} % kept their neighbour")
    if summary.neighbour_cosine is not None:
        parts.append(f"cosine {summary.neighbour_cosine:.3f}")
    if summary.clusters is not None:
        parts.append(f"clusters {sizes(summary.clusters)}")
    return f"round {summary.round} done: {', '.join(parts)}, {summary.seconds:.0f} s"


def _describe(found: Neighbourhoods) -> str:
    entropy = found.entropy[found.anchor_indexes]
    text = f"{len(entropy)} anchors of {len(found.entropy)} images, "
    text += f"entropy up to {entropy.max().item():.3f} (log N is {math.log(len(found.entropy)):.3f})"
    if found.recall is not None:
        text += f", {100 * found.recall:.2f} % of nearest neighbours are the true ones"
    if found.consistency is not None:
        text += f", consistency {100 * found.consistency:.2f} %"
    return text
