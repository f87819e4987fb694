"""What a run shows of itself beside its accuracy. It needs no labels; they only colour the frames of pictures."""

import os
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from datasets.files.image_cache import common_folder
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.bank_statistics import Survey, sample_rows, survey
from lib.figures.anchor_grid import anchor_grids
from lib.figures.thumbnails import thumbnails
from lib.logger.projector import SIDE
from lib.logger.tensorboard import Board
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT
from lib.training.state import TrainingState

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

    def __init__(self, options: Options, pipeline: Pipeline, labels: Optional[Tensor], world: World, board: Board):
        self.options, self.pipeline, self.labels, self.world, self.board = options, pipeline, labels, world, board
        self._rows = sample_rows(len(pipeline.train))  # (S,)
        self._shown: Optional[Tensor] = None  # places in `_rows` of the images in the projector

    def discovery(self, round_number: int, found: Neighbourhoods) -> None:
        """Draw the anchors of a round and their neighbours."""
        if self.board.folder is not None and self.options.tfb_anchors > 0:
            grids = anchor_grids(found, self.pipeline.train, self.labels, self.options.tfb_anchors)
            self.board.anchors(round_number, grids)

    def after_epoch(self, state: TrainingState) -> dict[str, Any]:
        """The part of the epoch's line in metrics.jsonl that needs no labels, with `NOTHING`'s keys.

        entropy, anchor_entropy: mean entropy of all images and of the round's anchors, in nats. neighbours_kept: share
        of images whose nearest is the one they had at the end of the round before. neighbour_cosine: mean cosine to
        the nearest. clusters: their sizes, after the last epoch of a round, with --round-clusters. Of more images than
        `sample_rows` takes, an even sample is looked at.
        """
        last = state.epoch == self.options.max_epoch
        if not last and state.epoch % self.options.eval_freq != 0:
            return NOTHING
        found = survey(state.bank.memory, self._rows, self.options.npc_temperature, state.bank.shard)
        self.board.survey(state.round, state.epoch, found)
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
                clusters = None
                if self.options.round_clusters:
                    # scikit-learn's second of import comes after a round
                    from lib.clustering.bank_clusters import clusters_of

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
