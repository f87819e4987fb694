"""What a run writes down about itself."""

import datetime
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from datasets.files.image_cache import common_folder
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.bank_statistics import Survey, sample_rows, survey
from lib.figures.thumbnails import anchor_grids, thumbnails
from lib.logger.projector import SIDE
from lib.logger.tensorboard import TensorBoardWriter
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT
from lib.runtime.device import describe_device, describe_precision
from lib.session import provenance
from lib.training.state import TrainingState

WINDOW = 10.0
"""Seconds of training that a rate is measured over."""
FALL = 3
NOTHING: dict[str, Any] = dict.fromkeys(
    ("entropy", "anchor_entropy", "neighbours_kept", "neighbour_cosine", "clusters")
)
"""The part of a line of metrics.jsonl for an epoch that was not looked at."""


class Observer:
    """Looks at a run.

    Args:
        options: the merged options.
        pipeline: the images.
        labels: (N,) for the frames of pictures, or None.
        world: the processes of the run; all must call every method, and the first one draws and writes.
        board: where pictures go.
    """

    def __init__(
        self, options: Options, pipeline: Pipeline, labels: Optional[Tensor], world: World, board: TensorBoardWriter
    ):
        self.options, self.pipeline, self.labels, self.world, self.board = options, pipeline, labels, world, board
        self._rows = sample_rows(len(pipeline.train))  # (S,)
        self._shown: Optional[Tensor] = None  # places in `_rows` of the images in the projector

    def discovery(self, round_number: int, found: Neighbourhoods) -> None:
        """Draw the anchors of a round and their neighbours."""
        if self.board.folder is not None and self.options.tfb_anchors > 0:
            grids = anchor_grids(found, self.pipeline.train, self.labels, self.options.tfb_anchors)
            self.board.anchors(round_number, {grid.part: grid.picture for grid in grids})

    def after_epoch(self, state: TrainingState) -> dict[str, Any]:
        """The part of the epoch's line in metrics.jsonl that needs no labels, with `NOTHING`'s keys.

        entropy, anchor_entropy: mean entropy of all images and of the round's anchors, in nats. neighbours_kept: share
        of images whose nearest is the one they had at the end of the round before. neighbour_cosine: mean cosine to
        the nearest. clusters: their sizes, after the last epoch of a round. Of more images than `sample_rows` takes,
        an even sample is looked at.
        """
        last = state.epoch == self.options.max_epoch
        if not last and state.epoch % self.options.eval_freq != 0:
            return NOTHING
        found = survey(state.bank.memory, self._rows, self.options.npc_temperature, state.bank.shard)
        self.board.bank_statistics(state.round, state.epoch, found.entropy.cpu().numpy(), found.cosine.cpu().numpy())
        anchors = state.neighbourhoods.position[found.rows] != ABSENT
        seen = {
            "entropy": found.entropy.mean().item(),
            "anchor_entropy": found.entropy[anchors].mean().item() if anchors.any() else None,
            "neighbours_kept": found.kept(state.nearest.get(state.round - 1)),
            "neighbour_cosine": found.cosine.mean().item(),
            "clusters": None,
        }
        if last:
            before = {number: rows for number, rows in state.nearest.items() if number == state.round - 1}
            state.nearest = {**before, state.round: found.nearest}
            if self.world.is_first:
                from lib.clustering.clusters import (
                    clusters_of,  # scikit-learn's second of import comes after a round
                )

                clusters = clusters_of(found, self.options.seed)
                if clusters is not None:
                    seen["clusters"] = clusters.sizes[clusters.sizes > 0].tolist()
                self._embed(state, found, None if clusters is None else clusters.assignments)
        return seen

    def _embed(self, state: TrainingState, found: Survey, clusters: Optional[Tensor]) -> None:
        """The features at the end of a round, for the projector."""
        if self.board.folder is None or self.options.tfb_projector == 0:
            return
        if self._shown is None:
            self._shown = sample_rows(len(self._rows), self.options.tfb_projector)
            self.board.thumbnails(thumbnails(self.pipeline.train, self._rows[self._shown].tolist(), SIDE))
        shown = self._shown
        rows = self._rows[shown].tolist()
        about = {
            "image": self._names(rows),
            "entropy": [f"{value:.3f}" for value in found.entropy.cpu()[shown].tolist()],
        }
        if clusters is not None:
            about["cluster"] = [str(number) for number in clusters[shown].tolist()]
        if self.labels is not None:
            classes = self.pipeline.train.classes
            about["label"] = [
                classes[label] if label >= 0 else "?" for label in self.labels[torch.tensor(rows)].tolist()
            ]
        self.board.embeddings(f"after-round-{state.round}", found.features.cpu()[shown].numpy(), about)

    def _names(self, rows: Sequence[int]) -> list[str]:
        """What an image is called: its file below the folder of them all, or its number."""
        paths = self.pipeline.train.paths
        if paths is None:
            return [str(row) for row in rows]
        names = [os.path.abspath(paths[row]) for row in rows]
        folder = common_folder(names)
        return [os.path.relpath(name, folder) for name in names]


def start_record(
    pipeline: Pipeline, world: World, dtype: Optional[torch.dtype], source: Optional[Path]
) -> dict[str, Any]:
    """Plain values, for `append_start`.

    Args:
        dtype: of autocast, or None.
        source: the checkpoint gone on from, or None.
    """
    return {
        "time": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": provenance.command_line(),
        "code": provenance.git_revision(),
        "versions": provenance.versions(),
        "device": describe_device(world.device),
        "precision": describe_precision(dtype),
        "processes": world.size,
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
    """One text for the contents of all files that were looked at; None where the fingerprint tells all."""
    return hashlib.blake2b(repr(list(contents)).encode(), digest_size=8).hexdigest() if contents else None


def write_note(
    folder: Path, round_number: int, epoch: int, step: int, what: str, rows: Tensor, files: Optional[Sequence[str]]
) -> Path:
    """Write `not-finite-rRRRR-eEEEE-sSSSSSS.json`.

    Args:
        folder: of the session.
        epoch, step: counted from 1, as in the log.
        what: was not finite.
        rows: (B,) the numbers of the images among the training images.
        files: their paths, where they have some.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"not-finite-r{round_number:04d}-e{epoch:04d}-s{step:06d}.json"
    note = {
        "round": round_number,
        "epoch": epoch,
        "step": step,
        "not_finite": what,
        "indices": rows.tolist(),
        "files": files if files is None else list(files),
    }
    path.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return path


class RateWatch:
    """Compares the images per second of each window with those of the fastest so far, and answers once.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since = clock, clock()
        self._images, self._seconds, self._fastest, self._answered = 0, 0.0, 0.0, False

    def resume(self) -> None:
        """Training goes on after something else: what that took does not count."""
        self._since = self._clock()

    def see(self, images: int) -> Optional[tuple[float, float]]:
        """So many more images were learnt from.

        Returns:
            the rate of this window and the fastest, the first time that it is below a third of it; else None.
        """
        now = self._clock()
        self._images += images
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._seconds < WINDOW:
            return None
        rate, fastest = self._images / self._seconds, self._fastest
        self._images, self._seconds, self._fastest = 0, 0.0, max(rate, fastest)
        if self._answered or rate * FALL >= fastest:
            return None
        self._answered = True
        return rate, fastest
