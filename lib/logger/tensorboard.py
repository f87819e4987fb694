"""TensorBoard files: one writer for the whole run, and one a round so that rounds can be laid over each other."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np

from lib.evaluation.bank_statistics import Survey
from lib.figures.anchor_grid import AnchorGrid
from lib.logger.console import LOGGER
from lib.logger.projector import Projector
from lib.logger.tensorboard_summaries import (
    ANCHORS,
    IMAGES,
    end_of_hyperparameters,
    layout,
    overview,
    start_of_hyperparameters,
)
from lib.method.neighbourhoods import Neighbourhoods

log = logging.getLogger(LOGGER)


class Board:
    """Writes under `tfboard/run` against the epoch of the run, and under `tfboard/round-R` against that of the round.

    Args:
        folder: where the event files go, or None to write nothing.
        max_epoch: epochs in a round, for the steps of the whole run.
        after: (round, epoch) that was completed before; what older files say of later steps is dropped from view.
    """

    def __init__(self, folder: Optional[Path], max_epoch: int, after: tuple[int, int] = (0, 0)):
        self.folder = folder
        self.max_epoch = max_epoch
        self._after = after
        self._writers: dict[str, Any] = {}
        self.projector: Optional[Projector] = None

    def _writer(self, name: str) -> Any:
        from lib.logger.event_file import EventFile  # a second of import that --no-log-tfb need not pay

        if name not in self._writers:
            path = self.folder / name
            purge_step = self._first_step(name) if path.exists() else None
            self._writers[name] = EventFile(str(path), purge_step)
        return self._writers[name]

    def _first_step(self, name: str) -> int:
        """The first step that a writer gets to write after going on."""
        round_number, epoch = self._after
        if name == "run":
            return round_number * self.max_epoch + epoch + 1
        return epoch + 1 if name == f"round-{round_number}" else 0

    def epoch(self, record: dict[str, Any], best_of_round: Optional[float], best_of_run: Optional[float]) -> None:
        """The scalars of one epoch, from its line in metrics.jsonl, and the best accuracies so far."""
        if self.folder is None:
            return
        scalars = {
            "Train/Loss": record["loss"],
            "Train/Learning_Rate": record["lr"],
            "Train/Images_per_second": record["images_per_second"],
            "Evaluate/Rank-1": record["knn_top1"],
            "Neighbours/Kept": record["neighbours_kept"],
            "Neighbours/Cosine": record["neighbour_cosine"],
            "Neighbours/Entropy": record["entropy"],
            "Neighbours/Entropy_of_anchors": record["anchor_entropy"],
            "Clusters/Number": None if record["clusters"] is None else len(record["clusters"]),
        }
        run_step = record["round"] * self.max_epoch + record["epoch"]
        for name, step, best in (
            ("run", run_step, best_of_run),
            (f"round-{record['round']}", record["epoch"], best_of_round),
        ):
            writer = self._writer(name)
            shown = {**scalars, "Evaluate/best_acc": best}
            if name == "run":
                shown.update(overview(scalars))
            for tag, value in shown.items():
                if value is not None:
                    writer.add_scalar(tag, value, step)
            writer.flush()

    def scalars(self, round_number: int, epoch: int, values: Mapping[str, Optional[float]]) -> None:
        """More numbers of an epoch, each as Evaluate/NAME."""
        if self.folder is None:
            return
        run_step = round_number * self.max_epoch + epoch
        for name, step in (("run", run_step), (f"round-{round_number}", epoch)):
            writer = self._writer(name)
            for key, value in values.items():
                if value is not None:
                    writer.add_scalar(f"Evaluate/{key}", value, step)
            writer.flush()

    def discovery(self, round_number: int, found: Neighbourhoods) -> None:
        """What a round starts from: number of anchors, consistency, and the histogram of entropies."""
        if self.folder is None:
            return
        for name, step in (("run", round_number * self.max_epoch), (f"round-{round_number}", 0)):
            writer = self._writer(name)
            writer.add_scalar("ANs/Number", len(found.anchor_indexes), step)
            if found.consistency is not None:
                tags = {"ANs/Consistency": found.consistency}
                for tag, value in {**tags, **(overview(tags) if name == "run" else {})}.items():
                    writer.add_scalar(tag, value, step)
            if round_number > 0:
                writer.add_histogram("ANs/Entropy", found.entropy.cpu().numpy(), step)
            writer.flush()

    def introduce(self, options: Mapping[str, Any], labelled: bool) -> None:
        """How the charts are laid out, and the options beside the figures they will lead to.

        A session that goes on keeps those it began with: TensorBoard reads the first ones.
        """
        if self.folder is None:
            return
        events = self._writer("run").file_writer
        for summary in (layout(labelled), *start_of_hyperparameters(options, labelled)):
            events.add_summary(summary)
        events.flush()

    def survey(self, round_number: int, epoch: int, found: Survey) -> None:
        """Histograms of entropy and of the distance to the nearest neighbour, 1 - cosine."""
        if self.folder is None:
            return
        writer, step = self._writer("run"), round_number * self.max_epoch + epoch
        writer.add_histogram(f"{IMAGES}/Entropy", found.entropy.cpu().numpy(), step)
        writer.add_histogram(f"{IMAGES}/Distance_to_nearest", 1 - found.cosine.cpu().numpy(), step)

    def anchors(self, round_number: int, grids: Sequence[AnchorGrid]) -> None:
        """Pictures of anchors and their neighbours, at the start of a round."""
        if self.folder is None:
            return
        for number, grid in enumerate(grids, 1):
            tag = f"{ANCHORS}/{number}_{grid.part}_entropy"
            self._writer("run").add_image(tag, grid.picture, round_number * self.max_epoch, dataformats="HWC")

    def embeddings(self, name: str, features: np.ndarray, about: Mapping[str, Sequence[str]]) -> None:
        """Features (S, D) for the projector; see `Projector.add`. Thumbnails must have been given before."""
        if self.projector is not None:
            with self._or_without_projector():
                self.projector.add(name, features, about)

    def thumbnails(self, squares: np.ndarray) -> None:
        """The images that `embeddings` are of, (S, SIDE, SIDE, 3) uint8."""
        if self.folder is not None:
            with self._or_without_projector():
                self.projector = Projector(self.folder / "run", squares)

    @contextmanager
    def _or_without_projector(self) -> Iterator[None]:
        """A full disk does not end the run."""
        try:
            yield
        except OSError as error:
            self.projector = None
            log.warning("the projector's files can no longer be written: %s; the run goes on without", error)

    def finish(self) -> None:
        """The run came to its end."""
        if self.folder is not None:
            self._writer("run").file_writer.add_summary(end_of_hyperparameters())

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
