"""The curriculum: round 0 learns instances, every later round starts by discovering anchors anew."""

import logging
import math
import time
from typing import Any, Optional

from torch import Tensor

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError
from lib.evaluation.protocols import Judged, Protocols
from lib.method.discovery import anchor_count, discover
from lib.method.neighbourhoods import Neighbourhoods
from lib.session import checkpoint
from lib.session.board import Board
from lib.session.folder import SessionFolder
from lib.session.journal import LOGGER, Metrics
from lib.session.progress import Progress
from lib.training.captured_step import CapturedStep
from lib.training.epoch import StepFunction, train_epoch
from lib.training.optimisation import start_schedule
from lib.training.state import TrainingState
from lib.training.step import Step

log = logging.getLogger(LOGGER)
RESULT = {"result": True}  # marks the lines that --brief shows


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
    ):
        self.options, self.session, self.labels, self.world = options, session, labels, world
        self.state, self.pipeline, self.protocols = state, pipeline, protocols
        self.step: StepFunction = Step(state.embedder, state.bank, state.optimizer, options.npc_temperature)
        if world.device.type == "cuda" and options.cuda_graph and world.size == 1:
            self.step = CapturedStep(self.step)
        self.metrics = None if session is None else Metrics(session.metrics)
        folder = session.tensorboard if session is not None and options.log_tfb else None
        self.board = Board(folder, options.max_epoch, (state.round, state.epoch))
        images = len(pipeline.train)
        rounds_left = max(0, options.max_round - state.round - 1)
        epochs_left = rounds_left * options.max_epoch + max(0, options.max_epoch - state.epoch)
        total = options.max_round * options.max_epoch * images
        self.progress = Progress(total, max(0, total - epochs_left * images), quiet=options.brief or not world.is_first)

    def run(self) -> Judged:
        """Train to the end of the last round, and judge the finished network. Rounds complete in the state are not
        repeated."""
        try:
            for round_number in range(self.state.round, self.options.max_round):
                if round_number > self.state.round or self.state.epoch == 0:
                    self._start_round(round_number)
                self._finish_round()
            log.info("%s", self.state.history.table(), extra=RESULT)
            judged = self.protocols.finished(self.state.embedder)
            self._note(judged, but_votes=True)
            return judged
        except KeyboardInterrupt:
            if self.session is not None and self.state.round + self.state.epoch > 0:
                log.warning("stopped; go on after the last completed epoch with --resume %s", self.session.path)
            raise
        finally:
            self.progress.close()
            self.board.close()

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
                options.ANs_select_rate,
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
        self.board.discovery(round_number, found)

    def _finish_round(self) -> None:
        """Train the epochs of the round that are left. The learning rate starts anew in every round."""
        options, state = self.options, self.state
        if state.epoch >= options.max_epoch:
            return
        schedule = start_schedule(options, state.optimizer, state.epoch)
        while state.epoch < options.max_epoch:
            self._train_one_epoch()
            schedule.step()
        summary = state.history.current
        log.info(
            "round %d done: %d anchors, %s%s, %.0f s",
            summary.round,
            summary.anchors,
            "" if summary.consistency is None else f"consistency {100 * summary.consistency:.2f} %, ",
            "no accuracy (no labels)"
            if summary.knn_last is None
            else f"kNN {100 * summary.knn_last:.2f} % last, {100 * summary.knn_best:.2f} % best",
            summary.seconds,
            extra=RESULT,
        )

    def _train_one_epoch(self) -> None:
        options, state = self.options, self.state
        started = time.perf_counter()
        order = self.pipeline.epoch_order(state.round, state.epoch)
        self.progress.label(f"round {state.round}/{options.max_round - 1} epoch {state.epoch + 1}/{options.max_epoch}")
        rate = state.optimizer.param_groups[0]["lr"]
        state.embedder.train()
        result = train_epoch(
            self.step,
            state.neighbourhoods,
            self.pipeline.train_batches(order, state.round, state.epoch),
            tuple(len(batch) for batch in order),
            options.iter_size,
            options.display_freq,
            self.progress.advance,
        )
        state.embedder.agree()
        state.epoch += 1
        votes = {"knn_top1": None, "knn_top5": None}
        votes.update(self.protocols.with_bank(state.embedder, state.bank.memory, state.epoch))
        top1 = votes["knn_top1"]
        seconds = time.perf_counter() - started
        is_best = state.history.current.add_epoch(state.epoch, top1, seconds)
        record = {
            "round": state.round,
            "epoch": state.epoch,
            "anchors": state.history.current.anchors,
            "consistency": state.history.current.consistency,
            "loss": result.loss,
            "lr": rate,
            **votes,
            "images_per_second": result.images / result.seconds,
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
        # what may take long comes when the epoch is on disk
        judged = self.protocols.after_epoch(state.embedder, state.round, state.epoch)
        self._note(judged)
        for protocol, findings in judged:
            log.info(
                "round %d epoch %d/%d  %s: %s",
                state.round,
                state.epoch,
                options.max_epoch,
                protocol.name,
                findings.summary,
            )

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
        # every process brings its part of the bank, the first one writes
        name = "" if self.session is None else self.session.name
        state = self.state.checkpoint(self.options, self.pipeline, name, top1)
        if self.session is None:
            return
        here = (self.state.round, self.state.history.current.anchors)
        checkpoint.save(state, self.session.checkpoint_file(*here))
        if is_best:
            checkpoint.save(state, self.session.checkpoint_file(*here, best=True))


def check_curriculum(options: Options, images: int) -> None:
    """Whether every round has anchors and every anchor its neighbours.

    Raises:
        UserError: there are too few images for the options.
    """
    if options.max_round > 1 and options.ANs_size >= images:
        raise UserError(f"--ANs-size {options.ANs_size}: an anchor has only {images - 1} other images to choose from")
    if options.max_round > 1 and anchor_count(images, options.ANs_select_rate, 1) == 0:
        raise UserError(f"--ANs-select-rate {options.ANs_select_rate}: no anchor among {images} images in round 1")


def _describe(found: Neighbourhoods) -> str:
    entropy = found.entropy[found.anchor_indexes]
    text = f"{len(entropy)} anchors of {len(found.entropy)} images, "
    text += f"entropy up to {entropy.max().item():.3f} (log N is {math.log(len(found.entropy)):.3f})"
    if found.recall is not None:
        text += f", {100 * found.recall:.2f} % of nearest neighbours are the true ones"
    if found.consistency is not None:
        text += f", consistency {100 * found.consistency:.2f} %"
    return text
