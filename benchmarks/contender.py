"""One run of a comparison at a budget, in a process of its own: trains, then measures kNN accuracies.

python3 -m benchmarks.contender '{"data": "digits", "variant": "quick", "seconds": 60, ...}' RESULT.json
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

import torch

import main
from benchmarks import readout, rivals
from benchmarks.runs import Cell
from lib.config import collect
from lib.errors import UserError, one_line
from lib.session import provenance

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {"quick": "quick", "instance": "quick", "paper": "base"}
"""Names of config files by variant. `instance` is round 0 of the quick recipe alone."""
LOGGER = "and"


class _Stamps(logging.Filter):
    """Notes the processor seconds of this process at each line of the training log, and passes the line on."""

    def __init__(self):
        super().__init__()
        self.lines: list[tuple[str, float]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append((record.getMessage(), time.process_time()))
        return True

    @property
    def epochs(self) -> list[float]:
        """Processor seconds of training after each epoch, counted from the last line before the first epoch.

        Lines within an epoch, `round 0/4 epoch 1/5 ...`, and at its end, `round 0 epoch 1/5 ...`, begin alike.
        """
        starts = [number for number, (text, _) in enumerate(self.lines) if text.startswith("round ")]
        ends = [at for text, at in self.lines if re.match(r"round \d+ epoch", text)]
        if not ends or starts[0] == 0:
            raise RuntimeError("main.py has logged no epoch")
        begin = self.lines[starts[0] - 1][1]
        return [at - begin for at in ends]


def arguments_of(data: str, recipe: str, data_root: Optional[str], seed: int, threads: int) -> list[str]:
    """The arguments of main.py for a recipe on one of the data sets in benchmarks/images."""
    files = [ROOT / "configs" / "base.yaml", ROOT / "configs" / f"{recipe}.yaml", scale_file(data)]
    root = ["--data-root", data_root] if data_root is not None and data.startswith("cifar") else []
    return ["--cfgs", *map(str, dict.fromkeys(files)), *root, "--seed", str(seed), "--threads", str(threads)]


def scale_file(data: str) -> Path:
    """The file with the options of a data set.

    Raises:
        UserError: there is no such data set.
    """
    path = ROOT / "benchmarks" / "images" / f"{data}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{data}: no such data set; there are {known}")
    return path


def rounds_within(seconds: float, epoch_seconds: float, rounds: int) -> tuple[int, int]:
    """(rounds, epochs in each) that fit: at least one epoch, and no more rounds than epochs."""
    epochs = max(1, int(seconds / epoch_seconds))
    return min(rounds, epochs), epochs // min(rounds, epochs)


def paper_schedule(epochs: int) -> list[str]:
    """The paper's decays, at 120 and 160 of a round's 200 epochs, scaled to a round of `epochs`; there is no third."""
    first, step = round(3 * epochs / 5), max(1, round(epochs / 5))
    if first + 2 * step < epochs:
        step += 1
    return ["--lr-decay-offset", str(max(0, first - step)), "--lr-decay-step", str(step)]


def train_ours(cell: Cell, data_root: Optional[str], threads: int) -> dict[str, Any]:
    """Train by main.py for the cell's processor seconds and measure the finished network.

    An epoch is timed first, since its processor seconds depend on the other programs that share a core's caches and
    units.
    """
    recipe = RECIPES[cell.variant]
    call = arguments_of(cell.data, recipe, data_root, cell.seed, threads)
    quiet = ["--eval-freq", "1000000", "--no-report", "--no-log-tfb", "--tfb-projector", "0"]
    epoch_seconds = _main([*call, *quiet, *_epochs(1, 2), "--debug"]).epochs[0]
    options = collect(call).options
    rounds = 1 if cell.variant == "instance" else options.max_round
    rounds, epochs = rounds_within(cell.seconds, epoch_seconds, rounds)
    schedule = paper_schedule(epochs) if recipe == "base" else []
    with tempfile.TemporaryDirectory() as folder:
        place = ["--sess-dir", folder, "--session", "run"]
        seconds = _main([*call, *quiet, *schedule, *_epochs(rounds, epochs), *place]).epochs[-1]
        accuracies = readout.of_session(readout.Images.of(call), f"{folder}/run")
    return {
        "accuracies": accuracies, "train_seconds": seconds, "views_done": rounds * epochs, "rounds": rounds,
    }  # fmt: skip


def _epochs(rounds: int, epochs: int) -> list[str]:
    return ["--minutes", "null", "--max-round", str(rounds), "--max-epoch", str(epochs)]


def _main(arguments: list[str]) -> _Stamps:
    """Run main.py in this process; if it fails, it has printed why."""
    logger, stamps = logging.getLogger(LOGGER), _Stamps()
    logger.addFilter(stamps)
    try:
        status = main.main(arguments)
    finally:
        logger.removeFilter(stamps)
    if status:
        raise SystemExit(status)
    return stamps


def measure(cell: Cell, data_root: Optional[str], threads: int) -> dict[str, Any]:
    """The result of a cell, as `benchmarks.runs` stores it."""
    torch.set_num_threads(threads)
    started, load = time.perf_counter(), os.getloadavg()[0]
    if cell.variant in RECIPES:
        found = train_ours(cell, data_root, threads)
    else:
        images = readout.Images.of(arguments_of(cell.data, "quick", data_root, cell.seed, threads))
        if cell.variant == "pixels":
            found = {"accuracies": readout.of_pixels(images), "train_seconds": 0, "views_done": 0}
        elif cell.variant == "untrained":
            found = {"accuracies": readout.of_untrained(images), "train_seconds": 0, "views_done": 0}
        else:
            found = rivals.train(cell.variant, images, cell.seconds, cell.views, cell.rate, cell.seed)
    return {
        **dataclasses.asdict(cell), **found, "wall_seconds": round(time.perf_counter() - started, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)], "threads": threads, "commit": provenance.git_revision(),
        "torch": torch.__version__,
    }  # fmt: skip


def _run() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.contender", description=__doc__.splitlines()[0])
    parser.add_argument("cell", help="JSON: data, variant, seconds, views, seed, rate")
    parser.add_argument("result", type=Path, help="file to write")
    parser.add_argument("--data-root")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    try:
        found = measure(Cell(**json.loads(given.cell)), given.data_root, given.threads)
    except UserError as error:
        raise SystemExit(one_line(error)) from None
    given.result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _run()
