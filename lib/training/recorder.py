"""Recorders of a run: progress and log on the terminal, and the files of a session.

The files are metrics.jsonl, TensorBoard's, checkpoints, report.html, features.npz and final.json.
"""

import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from datasets.files.cache import common_folder
from datasets.pipeline import Pipeline
from lib.checkpoint.manager import AsyncCheckpointSaver, CheckpointSaver, Position
from lib.config import Options
from lib.distributed.world import World
from lib.errors import RunError, not_none
from lib.evaluation.bank_statistics import Diagnostics
from lib.evaluation.evaluator import Evaluated, Evaluator
from lib.evaluation.features import Features
from lib.export.kept_features import KeptFeatures
from lib.figures.thumbnails import anchor_grids, thumbnails
from lib.logger.console import LOGGER, RESULT, Progress, RateWatch
from lib.logger.tensorboard import SPRITE_SIDE, TensorBoardWriter
from lib.method.neighbourhoods import Neighbourhoods
from lib.report import Report
from lib.search.exact import sample_rows
from lib.session.folder import SessionFolder
from lib.session.metrics import Metrics
from lib.session.records import write_bad_batch, write_final
from lib.training.state import TrainingState, non_finite_part
from lib.training.step import NotFinite

log = logging.getLogger(LOGGER)


class Recorder:
    """Shows progress and logs, and writes no files of a session.

    Runs with --debug use it, and all ranks but the first, with a silent log. The processes of a run must make
    the same calls: some gather rows from all of them.

    Args:
        options: the merged options.
        state: the state of the run.
        pipeline: the images.
        evaluator: evaluates the network.
        world: the processes of the run.
    """

    def __init__(self, options: Options, state: TrainingState, pipeline: Pipeline, evaluator: Evaluator, world: World):
        self.options, self.pipeline, self.evaluator, self.world = options, pipeline, evaluator, world
        images = len(pipeline.train)
        rounds_left = max(0, options.max_round - state.round - 1)
        epochs_left = rounds_left * options.max_epoch + max(0, options.max_epoch - state.epoch)
        images_left = epochs_left * images - state.progress.images
        total = (options.max_round - options.first_round) * options.max_epoch * images
        self._rate = RateWatch()
        self._progress = Progress(total, max(0, total - images_left), quiet=options.brief or not world.is_first)

    @property
    def last_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint that can be resumed."""
        return None

    @property
    def resume_command(self) -> str:
        """The command that resumes the run from it."""
        return ""

    def discovered(self, round_number: int, found: Neighbourhoods, started: float) -> None:
        """Log the anchors and neighbours of a round; `started`: the start of discovery, by time.perf_counter()."""
        described = str(found)  # waits for the device
        log.info("round %d: %s, found in %.1f s", round_number, described, time.perf_counter() - started)

    def round_started(self, round_number: int, found: Neighbourhoods) -> None:
        """Record the anchors and neighbours of a round."""

    def epoch_started(self, state: TrainingState) -> None:
        """Show that an epoch begins or is resumed."""
        rounds, epochs = self.options.max_round - 1, self.options.max_epoch
        self._progress.label(f"round {state.round}/{rounds} epoch {state.epoch + 1}/{epochs}")
        self.resume_timing()

    def resume_timing(self) -> None:
        """Exclude the time since the last step from the rate of training."""
        self._rate.resume()

    def steps_done(self, images: int, loss: float) -> None:
        """Count images that were trained on; the loss is that of the last batch."""
        self._progress.advance(images, loss)
        slow = self._rate.update(images)
        if slow is not None:
            has_threads = self.world.device.type == "cpu" and torch.get_num_threads() > 1
            log.warning(
                "training runs at %.0f images/s, less than a third of the earlier %.0f; other programs may be using "
                "this machine: end some of them%s",
                *slow,
                ", or stop the run and resume it with --threads 1" if has_threads else "",
            )

    def evaluating(self) -> None:
        """Show that the evaluation of an epoch begins."""
        self._progress.note("evaluating")

    def diagnosed(self, state: TrainingState, found: Diagnostics) -> None:
        """Record the diagnostics of an epoch."""

    def epoch_finished(self, state: TrainingState, record: dict[str, Any], is_best: bool) -> None:
        """Record an epoch and save a checkpoint, which is on disk after `flush`.

        Args:
            record: its line in metrics.jsonl.
            is_best: whether its kNN accuracy is the best of the round so far.

        Raises:
            RunError: as `save`.
        """
        self.save(state, record["knn_top1"], is_best)
        top1 = record["knn_top1"]
        log.info(
            "round %d epoch %d/%d  loss %.4f  lr %.4g  %s%.0f images/s  %.1f s",
            state.round,
            state.epoch,
            self.options.max_epoch,
            record["loss"],
            record["lr"],
            "" if top1 is None else f"kNN {100 * top1:.2f} %  ",
            record["images_per_second"],
            record["seconds"],
        )

    def evaluated(self, state: TrainingState, results: Evaluated) -> None:
        """Record the results of slower protocols after the last epoch."""
        place = (state.round, state.epoch, self.options.max_epoch)
        for protocol, each in results:
            log.info("round %d epoch %d/%d  %s: %s", *place, protocol.name, each.summary)

    def round_finished(self, state: TrainingState) -> None:
        """Record the summary of a round."""
        log.info("%s", state.history.current.closing_line(self.evaluator.title), extra=RESULT)
        self.write_report()

    def run_finished(self, state: TrainingState, results: Evaluated, features: Features) -> None:
        """Record the results of the finished network; `features`: its features."""
        self._log_rank(features)
        if not (features.space.is_plain or self.options.debug):
            features.all_train()  # sends this process's features to the first process

    def _log_rank(self, features: Features) -> float:
        """Log the effective rank of the finished network's features, and return it."""
        level, dim = features.space.level, features.train.shape[1]
        log.info(
            "last network: RankMe (effective rank) of its training features %.1f of %d (%s)", features.rank, dim, level
        )
        return features.rank

    def write_results(self, state: TrainingState, results: Evaluated) -> None:
        """Write final.json, the report and the files of the results, and log their paths."""

    def save(self, state: TrainingState, top1: Optional[float], is_best: bool) -> None:
        """Save a checkpoint: every process sends its part of the bank to the first one, which writes.

        Args:
            top1: the kNN accuracy of the epoch, in [0, 1], if it was evaluated.

        Raises:
            RunError: it could not be written, or a number in it is not finite.
        """
        if not self.options.debug:
            state.bank.shard.gather_to_first(state.bank.memory)

    def last_epoch(self) -> dict[str, Any]:
        """The last line of metrics.jsonl; empty without one."""
        return {}

    def write_report(self) -> None:
        """Write the report of the session as it stands."""

    def flush(self) -> None:
        """Wait until all that was saved is on disk.

        Raises:
            RunError: it could not be written.
        """

    def close(self) -> None:
        """End the run, also one that failed."""
        self._progress.close()

    def not_finite_error(self, state: TrainingState, found: NotFinite, order: Sequence[Tensor]) -> RunError:
        """The error about a non-finite loss or gradient, with the images of the batch.

        Args:
            found: the batch, and which of the two it is.
            order: the rows of the images in each batch of the epoch.
        """
        # a gradient is that of all batches of its optimiser step
        batches = self.options.iter_size if found.what == "gradient" else 1
        first = found.step // batches * batches
        rows = torch.cat(list(order[first : found.step + 1]))
        place = (state.round, state.epoch + 1, found.step + 1)
        return RunError(
            f"the {found.what} is not finite in round {place[0]}, epoch {place[1]}, step {place[2]}; "
            f"{self._bad_images(place, found.what, rows)}; {self._last_good()}; try a lower --base-lr or a higher "
            "--npc-temperature"
        )

    def _bad_images(self, place: tuple[int, int, int], what: str, rows: Tensor) -> str:
        """Text that names the images of the bad batch."""
        return f"images {', '.join(map(str, rows[:5].tolist()))}, ..."

    def _last_good(self) -> str:
        try:
            last = self.last_checkpoint
        except RunError as error:  # reported beside the error that ends the run
            return str(error)
        return "there is no checkpoint from before" if last is None else f"the last good checkpoint is {last}"


class SessionRecorder(Recorder):
    """A `Recorder` that also writes the files of a session.

    Args:
        session: where to write.
        options, state, pipeline, evaluator, world: as `Recorder`.
        labels: (N,) training labels for the frames of the anchor grids, or None.
        report: written at the end of each round, or None.
        resumed_from: the session's checkpoint from which the state was restored, or None.
    """

    def __init__(
        self,
        session: SessionFolder,
        options: Options,
        state: TrainingState,
        pipeline: Pipeline,
        evaluator: Evaluator,
        world: World,
        labels: Optional[Tensor] = None,
        report: Optional[Report] = None,
        resumed_from: Optional[Path] = None,
    ):
        super().__init__(options, state, pipeline, evaluator, world)
        self.session, self._labels, self._report = session, labels, report
        self._metrics = Metrics(session.metrics)
        folder = session.tensorboard if options.log_tfb else None
        self._tensorboard = TensorBoardWriter(folder, options.max_epoch, (state.round, state.epoch))
        self._kept_options = options.as_dict()
        self._tensorboard.start(self._kept_options, evaluator.has_knn)
        self._shown: Optional[Tensor] = None  # indices of the projector's images among the rows of the diagnostics
        # a process that is forked while a thread holds a lock could wait for it forever
        saver = CheckpointSaver if pipeline.starts_processes else AsyncCheckpointSaver
        self._checkpoints = saver(session, options.keep)
        if resumed_from is not None:
            current, position = state.history.current, _position(state)
            is_best = position.step == 0 and state.epoch > 0 and current.best_epoch == state.epoch
            self._checkpoints.resume_from(resumed_from, position, current.anchors, is_best)

    @property
    def last_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint that can be resumed.

        Raises:
            RunError: it could not be written.
        """
        return self._checkpoints.last

    @property
    def resume_command(self) -> str:
        """The command that resumes the run. GPU indices are not restored on resume, so it names them."""
        gpus = self.options.gpus
        indices = "" if gpus in ("auto", "cpu") else f" --gpus {gpus}"
        return f"python3 main.py --resume {shlex.quote(str(self.session.path))}{indices}"

    def round_started(self, round_number: int, found: Neighbourhoods) -> None:
        entropy = found.entropy.cpu().numpy() if round_number > 0 else None
        self._tensorboard.discovery(round_number, len(found.anchor_indexes), found.consistency, entropy)
        if self._tensorboard.folder is not None and self.options.tfb_anchors > 0:
            grids = anchor_grids(found, self.pipeline.train, self._labels, self.options.tfb_anchors)
            self._tensorboard.anchors(round_number, {grid.part: grid.picture for grid in grids})

    def diagnosed(self, state: TrainingState, found: Diagnostics) -> None:
        statistics = found.statistics
        entropy, cosine = statistics.entropy.cpu().numpy(), statistics.cosine.cpu().numpy()
        self._tensorboard.bank_statistics(state.round, state.epoch, entropy, cosine)
        if state.epoch == self.options.max_epoch:
            self._write_projector(state.round, found)

    def epoch_finished(self, state: TrainingState, record: dict[str, Any], is_best: bool) -> None:
        """As `Recorder.epoch_finished`. The checkpoint is written last, after its epoch's metrics."""
        self._metrics.append(record)
        self._tensorboard.epoch(record, state.history.current.knn_best, state.history.best_top1)
        super().epoch_finished(state, record, is_best)

    def evaluated(self, state: TrainingState, results: Evaluated) -> None:
        self._add_results(state, results)
        super().evaluated(state, results)

    def run_finished(self, state: TrainingState, results: Evaluated, features: Features) -> None:
        # metrics.jsonl has the kNN accuracy of the last epoch; that of recomputed features goes to final.json
        self._add_results(state, [each for each in results if each[0] not in self.evaluator.knn])
        self._metrics.amend_last({f"rankme_{features.space.level}": self._log_rank(features)})
        if not features.space.is_plain:  # the bank does not hold these features
            KeptFeatures(features.space, not_none(features.all_train()), state.round, state.epoch).write(
                self.session.features
            )
        self._tensorboard.finish()

    def write_results(self, state: TrainingState, results: Evaluated) -> None:
        accuracy, of_features = self.evaluator.knn_accuracy(results), self.evaluator.knn_feature_accuracy(results)
        if accuracy is not None:
            features = None
            if of_features is not None:
                space, (top1, top5) = self.evaluator.space, of_features
                features = {"level": space.level, "whitened": space.whitened, "top1": top1, "top5": top5}
            write_final(self.session.final, state.round, state.epoch, *accuracy, state.baselines, features)
        if self._report is not None:
            self._report.write_if_possible()
        for _, each in results:
            for path in each.write(self.session.path):
                log.info("written: %s", path, extra=RESULT)
        log.info("checkpoints, log, metrics and TensorBoard files: %s", self.session.path, extra=RESULT)

    def save(self, state: TrainingState, top1: Optional[float], is_best: bool) -> None:
        self.flush()  # so that at most one copy of the state waits to be written
        memory = state.bank.shard.gather_to_first(state.bank.memory)
        assert memory is not None  # this is the first process
        saved = state.checkpoint(memory, self._kept_options, self.session.name, top1)
        part = non_finite_part(saved)
        if part is not None:
            raise RunError(
                f"a number in the {part} is not finite after {state.epoch} epochs and {state.progress.step} steps of "
                f"round {state.round}, so nothing was saved; {self._last_good()}; try a lower --base-lr"
            )
        self._checkpoints.save(saved, _position(state), len(state.neighbourhoods.anchor_indexes), is_best)

    def last_epoch(self) -> dict[str, Any]:
        return self._metrics.last()

    def write_report(self) -> None:
        if self._report is not None:
            self.flush()
            self._report.write_if_possible()

    def flush(self) -> None:
        self._checkpoints.flush()

    def close(self) -> None:
        super().close()
        self._tensorboard.close()
        self._checkpoints.close()

    def _add_results(self, state: TrainingState, results: Evaluated) -> None:
        """Add results to the line of the last epoch in metrics.jsonl and to TensorBoard."""
        for _, each in results:
            self._metrics.amend_last(each.scalars)
            self._tensorboard.scalars(state.round, state.epoch, each.scalars)

    def _bad_images(self, place: tuple[int, int, int], what: str, rows: Tensor) -> str:
        try:
            files = self.pipeline.files_of(rows.tolist())
            return f"the images are listed in {write_bad_batch(self.session.path, *place, what, rows.tolist(), files)}"
        except OSError as failure:
            images = super()._bad_images(place, what, rows)
            return f"{images} (the list of all could not be written: {failure.strerror})"

    def _write_projector(self, round_number: int, found: Diagnostics) -> None:
        """Write features at the end of a round for the projector."""
        if self._tensorboard.folder is None or self.options.tfb_projector == 0:
            return
        statistics = found.statistics
        if self._shown is None:
            self._shown = sample_rows(len(statistics.rows), self.options.tfb_projector)
            self._tensorboard.thumbnails(
                thumbnails(self.pipeline.train, statistics.rows.cpu()[self._shown].tolist(), SPRITE_SIDE)
            )
        shown = self._shown
        rows = statistics.rows.cpu()[shown].tolist()
        about = {
            "image": self._names(rows),
            "entropy": [f"{value:.3f}" for value in statistics.entropy.cpu()[shown].tolist()],
        }
        if found.clusters is not None:
            about["cluster"] = [str(number) for number in found.clusters[shown].tolist()]
        if self._labels is not None:
            classes = self.pipeline.train.classes
            about["label"] = [
                classes[label] if label >= 0 else "?" for label in self._labels[torch.tensor(rows)].tolist()
            ]
        self._tensorboard.embeddings(f"after-round-{round_number}", statistics.features.cpu()[shown].numpy(), about)

    def _names(self, rows: Sequence[int]) -> list[str]:
        """The names of images: their files below the common folder, or their numbers."""
        paths = self.pipeline.train.paths
        if paths is None:
            return [str(row) for row in rows]
        names = [os.path.abspath(paths[row]) for row in rows]
        folder = common_folder(names)
        return [os.path.relpath(name, folder) for name in names]


def _position(state: TrainingState) -> Position:
    return Position(state.round, state.epoch, state.progress.step)
