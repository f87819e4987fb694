"""`--minutes`: the epochs of a round from a time for the whole run, by the rate of some steps before the first."""

import dataclasses
import time

import torch

from datasets.pipeline import Pipeline
from lib.config import Settings
from lib.distributed.world import World
from lib.errors import UserError
from lib.training.state import TrainingState
from lib.training.step import Step
from lib.training.thread_choice import unchanged

TIMED = 8
"""Steps that are timed, after one that is not."""
SHARE = 0.85
"""Share of the time that is planned for: discovery, reports and checkpoints need the rest."""
EVALUATION = 0.4
"""Seconds that a test image takes, as a share of those of a training image: forward, without backward."""


def epochs_within(seconds: float, image_seconds: float, train: int, test: int, rounds: int) -> int:
    """Epochs a round, at least 1.

    Args:
        seconds: for the whole run.
        image_seconds: of a training image in a step, all processes together.
        train, test: images.
        rounds: of the run.
    """
    epoch = image_seconds * (train + EVALUATION * test)
    return max(1, int(SHARE * seconds / (rounds * epoch)))


def within_minutes(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> tuple[Settings, str]:
    """The settings with --max-epoch chosen for --minutes, and a line for the log. All processes must call it.

    State and random numbers are as before afterwards.

    Raises:
        UserError: --max-epoch was given on the command line as well.
    """
    options = settings.options
    if settings.sources["max_epoch"] == "command line":
        raise UserError("--minutes chooses --max-epoch by the speed of this machine; give one of them")
    image_seconds = _image_seconds(settings, state, pipeline, world)
    test = 0 if pipeline.test is None else len(pipeline.test)
    rounds = options.max_round - options.first_round
    epochs = epochs_within(60 * options.minutes, image_seconds, len(pipeline.train), test, rounds)
    options = dataclasses.replace(options, max_epoch=epochs)
    sources = {**settings.sources, "max_epoch": "--minutes"}
    planned = epochs * rounds * image_seconds * (len(pipeline.train) + EVALUATION * test) / 60
    note = f"{epochs} epochs a round at {1 / image_seconds:.0f} images/s, {planned:.1f} minutes (--minutes)"
    if planned > options.minutes:
        note += "; one epoch a round takes longer than wished: lower --max-round, or take fewer images (--limit-train)"
    return dataclasses.replace(settings, options=options, sources=sources), note


def _image_seconds(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> float:
    """Seconds of a training image, by the median of the steps; of the slowest process."""
    order = pipeline.epoch_order(state.round, state.epoch)[: 1 + TIMED]
    step = Step(state.embedder, state.bank, state.optimizer, settings.options.npc_temperature)
    spent, started = [], time.perf_counter()
    state.embedder.train()
    with unchanged(state, torch.cat(order)):
        for rows, (images, indices) in zip(order, pipeline.train_batches(order, state.round, state.epoch)):
            step(images, state.neighbourhoods.members(indices), len(rows)).item()
            now = time.perf_counter()
            spent.append((now - started) / len(rows))
            started = now
    timed = sorted(spent[1:] or spent)
    seconds = torch.tensor([timed[len(timed) // 2]], dtype=torch.float64, device=world.device)
    return world.all_reduce_max(seconds).item()
