"""The curriculum: round 0 learns instances, every later round first discovers anchors and neighbours in the bank."""

import functools
import logging
import math
import signal
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Optional

import torch
from torch import Tensor

from datasets.pipeline import Pipeline
from lib.compat import HAS_CAPTURE_BESIDE_THREADS
from lib.config import Options
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import Interrupted, UserError
from lib.evaluation.bank_statistics import Diagnostics, diagnose
from lib.evaluation.evaluator import Evaluated, Evaluator, Protocol
from lib.logger.console import LOGGER
from lib.method.discovery import anchor_count, discover
from lib.method.neighbourhoods import Neighbourhoods
from lib.runtime.stop_signals import BATCH_TIMEOUT, StopSignals
from lib.search.exact import sample_rows
from lib.session.metrics import DIAGNOSTICS
from lib.training.cuda_graph import CapturedStep, can_be_captured
from lib.training.epoch import (
    EpochProgress,
    EpochResult,
    NotFiniteError,
    StepFunction,
    train_epoch,
    with_seeded_dropout,
)
from lib.training.optim import start_schedule
from lib.training.recorder import Recorder
from lib.training.state import TrainingState
from lib.training.step import Step
from lib.training.stopping import SaveEvery, StopAndSavePolicy

log = logging.getLogger(LOGGER)


class Trainer:
    """Trains the remaining rounds of a run.

    Args:
        options: the merged options.
        state: the state to train; its round and epoch are the position in the run.
        pipeline: the images.
        evaluator: evaluates the network after epochs and at the end.
        recorder: shows and records progress and results.
        labels: (N,) training labels, for the reported consistency only; or None.
        world: the processes of the run. All take the same steps.
        is_resumed: whether the state was restored from a checkpoint of the same session.
    """

    def __init__(
        self,
        options: Options,
        state: TrainingState,
        pipeline: Pipeline,
        evaluator: Evaluator,
        recorder: Recorder,
        labels: Optional[Tensor],
        world: World,
        is_resumed: bool = False,
    ):
        self.options, self.world = options, world
        self.state, self.pipeline, self.evaluator, self.recorder = state, pipeline, evaluator, recorder
        self.step = _step_function(options, state, pipeline, world)
        self.stop = StopSignals(
            launched=ProcessInfo.here().launched,
            quiet=not world.is_first,
            waiting_since=lambda: pipeline.waiting_since,
            batch_timeout=self._stopped_while_waiting,
        )
        every = SaveEvery() if options.debug else SaveEvery.parse(options.save_every)
        self.policy = StopAndSavePolicy(every, self.stop, world, self._save)
        self._discover = functools.partial(
            discover,
            select_rate=options.select_rate,
            k=options.ANs_size,
            temperature=options.npc_temperature,
            backend=options.knn_backend,
            labels=labels,
            shard=state.bank.shard,
            memory_budget=options.discovery_memory * 2**20,
        )
        self._rows = sample_rows(len(pipeline.train))  # (S,) of the diagnostics
        is_between_epochs = state.epoch > 0 and state.progress.step == 0
        self._may_lack_results = is_resumed and not options.debug and is_between_epochs

    def run(self) -> Evaluated:
        """Train to the end of the last round, then evaluate the finished network.

        Raises:
            Interrupted: a signal asked to stop; the run is saved up to its last step.
            RunError: a checkpoint could not be written, or a loss, a gradient or a weight is not finite.
        """
        try:
            with self.stop:
                if self._may_lack_results:
                    self._evaluate_missing()
                for round_number in range(self.state.round, self.options.max_round):
                    if not self._has_begun(round_number):
                        self._start_round(round_number)
                    self._train_round()
                return self._evaluate_finished()
        finally:
            self.recorder.close()

    def _has_begun(self, round_number: int) -> bool:
        state = self.state
        return round_number == state.round and (state.epoch > 0 or state.progress.step > 0)

    def _start_round(self, round_number: int) -> None:
        """Discover anchors and neighbours in the bank at the end of the previous round."""
        options, state, started = self.options, self.state, time.perf_counter()
        if round_number == 0:
            found = Neighbourhoods.none(len(self.pipeline.train), options.ANs_size, self.world.device)
        else:
            found = self._discover(state.bank.memory, round_number)
            self.recorder.discovered(round_number, found, started)
        state.neighbourhoods, state.round, state.epoch = found, round_number, 0
        state.progress = EpochProgress()  # resumed within an epoch that a lower --max-epoch leaves out
        seconds = time.perf_counter() - started
        state.history.start_round(round_number, len(found.anchor_indexes), found.consistency, seconds)
        self.recorder.round_started(round_number, found)

    def _train_round(self) -> None:
        """Train the remaining epochs of the round."""
        options, state = self.options, self.state
        if state.epoch >= options.max_epoch:
            return
        schedule = start_schedule(options, state.optimizer, state.round, state.epoch)
        while state.epoch < options.max_epoch:
            self._train_epoch()
            schedule.step()
            if (state.round, state.epoch) == (options.first_round, 1) and options.max_epoch > 1:
                self.recorder.write_report()  # a round may take days
        self.recorder.round_finished(state)

    def _train_epoch(self) -> None:
        """Train the remaining steps of an epoch, evaluate, save, and stop if a signal asks for it."""
        state, started = self.state, time.perf_counter()
        before, state.progress = state.progress, EpochProgress()
        rate = state.optimizer.param_groups[0]["lr"]
        result = self._train_steps(before)
        state.embedder.sync_buffers()
        state.epoch += 1
        self.recorder.evaluating()
        accuracies = self.evaluator.evaluate_bank(state.embedder, state.bank.memory, state.epoch)
        found = self._diagnose()
        seconds = before.seconds + time.perf_counter() - started
        record = self._record(result, rate, accuracies, found, seconds)
        is_best = state.history.current.add(record)
        self.recorder.epoch_finished(state, record, is_best)
        self._evaluate(self.evaluator.due(state.round, state.epoch))
        signal_number = self.policy.after_epoch()
        if signal_number is not None:
            raise self._interrupted(signal_number)

    def _train_steps(self, before: EpochProgress) -> EpochResult:
        """Train the batches of an epoch that follow those in `before`."""
        options, state, network = self.options, self.state, self.state.embedder.network
        context = (state.round, state.epoch)
        order = self.pipeline.epoch_order(*context)
        sizes = tuple(len(batch) for batch in order)
        self.policy.saved_at(before.step)
        self.recorder.epoch_started(state)
        batches = with_seeded_dropout(
            self.pipeline.train_batches(order, *context, start=before.step),
            network,
            self.world,
            sizes,
            before.step,
            options.seed,
            *context,
        )
        state.embedder.train()
        try:
            return train_epoch(
                self.step,
                state.neighbourhoods,
                batches,
                sizes,
                options.iter_size,
                options.display_freq,
                self.recorder.steps_done,
                before,
                self.policy.between_steps,
            )
        except NotFiniteError as error:
            raise self.recorder.not_finite_error(state, error.found, order) from error

    def _save(self, progress: EpochProgress, signal_number: Optional[int]) -> None:
        """Save within an epoch; stop if a signal asks for it."""
        self.state.progress = progress
        self.recorder.save(self.state, None, is_best=False)
        if signal_number is not None:
            raise self._interrupted(signal_number)
        self.state.progress = EpochProgress()
        self.recorder.resume_timing()

    def _diagnose(self) -> Optional[Diagnostics]:
        """The diagnostics of the bank after an epoch; None if it is not evaluated."""
        options, state = self.options, self.state
        is_last = state.epoch == options.max_epoch
        if not is_last and state.epoch % options.eval_freq != 0:
            state.clusters = {}
            return None
        previous = state.nearest.get(state.round - 1)
        number = options.num_clusters if is_last else None
        tau = options.npc_temperature
        found = diagnose(state.bank, state.neighbourhoods, previous, self._rows, tau, options.seed, number)
        state.clusters = found.clustering
        if is_last:
            state.nearest = {} if previous is None else {state.round - 1: previous}
            state.nearest[state.round] = found.statistics.nearest
        self.recorder.diagnosed(state, found)
        return found

    def _record(
        self,
        result: EpochResult,
        rate: float,
        accuracies: dict[str, Optional[float]],
        found: Optional[Diagnostics],
        seconds: float,
    ) -> dict[str, Any]:
        """The line of an epoch in metrics.jsonl."""
        state = self.state
        return {
            "round": state.round,
            "epoch": state.epoch,
            "anchors": state.history.current.anchors,
            "consistency": state.history.current.consistency,
            "loss": result.loss,
            "lr": rate,
            **{"knn_top1": None, "knn_top5": None, **accuracies},
            **(dict.fromkeys(DIAGNOSTICS) if found is None else found.values),
            "images_per_second": result.images / result.rate_seconds,
            "seconds": seconds,
        }

    def _evaluate(self, protocols: Sequence[Protocol]) -> None:
        """Evaluate by slower protocols after an epoch, once its checkpoint is saved."""
        if not protocols:
            return
        self.recorder.flush()
        self.recorder.evaluated(self.state, self.evaluator.evaluate(protocols, self.state.embedder))

    def _evaluate_finished(self) -> Evaluated:
        """Evaluate the finished network by all protocols, with every feature recomputed."""
        self.recorder.flush()
        self.stop.raise_at_once(self._stopped_while_evaluating)
        results, features = self.evaluator.evaluate_finished(self.state.embedder)
        self.recorder.run_finished(self.state, results, features)
        return results

    def _evaluate_missing(self) -> None:
        """Evaluate by the slower protocols whose results a killed process did not write after its last checkpoint."""
        due = self.evaluator.due(self.state.round, self.state.epoch)
        if not due:
            return
        known = self.recorder.last_epoch()
        present = torch.tensor([int(protocol.has_results_in(known)) for protocol in due], device=self.world.device)
        self.world.broadcast(present)  # only the first process has the file
        self._evaluate([protocol for protocol, is_present in zip(due, present.tolist()) if not is_present])

    def _interrupted(self, signal_number: int) -> Interrupted:
        state = self.state
        where = f"stopped in round {state.round} after {state.epoch} epochs and {state.progress.step} steps"
        return self._stopped(signal_number, where, ", saved as {last}; resume with: {command}", by_all=True)

    def _stopped_while_evaluating(self, signal_number: int) -> Interrupted:
        where = "stopped while the finished network was evaluated"
        return self._stopped(signal_number, where, "; it is saved as {last}; evaluate it with: {command}")

    def _stopped_while_waiting(self, signal_number: int) -> Interrupted:
        where = f"stopped while no batch of images arrived for {BATCH_TIMEOUT:.0f} s"
        saved = "; {last} was saved before; resume with: {command}"
        return self._stopped(signal_number, where, saved, "nothing had been saved")

    def _stopped(
        self,
        signal_number: int,
        where: str,
        saved: str,
        not_saved: str = "nothing was saved (--debug)",
        by_all: bool = False,
    ) -> Interrupted:
        where, last = f"{signal.Signals(signal_number).name}: {where}", self.recorder.last_checkpoint
        if last is None:
            return Interrupted(signal_number, f"{where}; {not_saved}", by_all)
        message = saved.format(last=last, command=self.recorder.resume_command)
        return Interrupted(signal_number, where + message, by_all)


def _step_function(options: Options, state: TrainingState, pipeline: Pipeline, world: World) -> StepFunction:
    """The training step, replayed as a CUDA graph where that gives the same results."""
    step = Step(state.embedder, state.bank, state.optimizer, options.npc_temperature)
    # a thread of the DataLoader pins memory, which an older PyTorch does not allow during a capture
    is_undisturbed = pipeline.on_device or HAS_CAPTURE_BESIDE_THREADS
    is_wanted = world.device.type == "cuda" and options.cuda_graph and world.size == 1
    if is_wanted and is_undisturbed and can_be_captured(state.embedder.network, state.optimizer):
        return CapturedStep(step)
    return step


def check_curriculum(options: Options, images: int) -> None:
    """Check that every round has anchors and every anchor its neighbours.

    Raises:
        UserError: there are too few images for the options.
    """
    if options.max_round > 1 and options.ANs_size >= images:
        raise UserError(f"--ANs-size {options.ANs_size}: an anchor has only {images - 1} other images to choose from")
    if options.max_round > 1 and anchor_count(images, options.select_rate, 1) == 0:
        raise UserError(f"--ANs-select-rate {options.ANs_select_rate}: no anchor among {images} images in round 1")


def curriculum_note(options: Options) -> Optional[str]:
    """A warning where all images are anchors in several rounds, or None."""
    rate, last = options.select_rate, options.max_round - 1
    complete = math.ceil(1 / rate) if isinstance(rate, Fraction) else math.ceil(1 / Fraction(repr(rate)))
    if complete >= last:
        return None
    return (
        f"rounds {complete} to {last} take all images as anchors (--ANs-select-rate {options.ANs_select_rate}); "
        f"--ANs-select-rate auto would be 1/{last}, so that only the last round does, as in the paper"
    )
