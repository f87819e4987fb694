"""Features with a known number of classes: of networks trained on so many classes, of pixels, and random blobs."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

import datasets
from datasets.pipeline import Pipeline
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import newest_checkpoint
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation.features import extract
from lib.pretrained.fitting import load_exactly
from lib.training.state import build_embedder

ROOT = Path(__file__).resolve().parents[2]

DIGITS = {  # classes: seeds
    "0 1 2": (0, 4),
    "3 5 8": (1,),
    "4 7 9": (2,),
    "6 8 9": (3,),
    "1 7 8": (4,),
    "0 1 2 3 4": (0, 4),
    "1 3 6 7 9": (1,),
    "2 4 5 8 9": (2,),
    "0 3 6 7 8": (3,),
    "0 1 2 3 4 5 6": (0, 4),
    "0 2 4 5 7 8 9": (1,),
    "1 2 3 6 7 8 9": (2,),
    "0 1 3 4 5 6 9": (3,),
    "0 1 2 3 4 5 6 7 8 9": (0, 1, 2, 3),
}
"""The first network of each number of classes, and more. The constants of `linkage` were set on these."""

HELD_OUT = {
    "2 3 7": (11,),
    "0 5 9": (12,),
    "1 4 8": (13,),
    "3 6 9": (14,),
    "0 2 4 6 8": (11,),
    "1 3 5 7 9": (12,),
    "2 3 5 6 9": (13,),
    "0 1 4 7 8": (14,),
    "0 1 2 3 5 7 8": (11,),
    "0 3 4 5 6 8 9": (12,),
    "1 2 4 5 6 7 9": (13,),
    "0 1 2 3 4 5 6 7 8 9": (11, 12, 13, 14),
}
"""Chosen and trained after everything was set, and nothing was changed since."""

OPTIONS = ["--network", "resnet18", "--init", "torchvision", "--precision", "auto"]
OPTIONS += ["--max-epoch", "4", "--lr-decay-offset", "2"]
"""Options of all networks, over configs/digits.yaml: those of the report of 2026-11-24."""

CIFAR = {"0 1 6": 2000, "0 1 2 3 4 5 6 7 8 9": 3000}  # classes: training images
CIFAR_OPTIONS = "--dataset cifar10 --size 16 --batch-size 64 --limit-test 500 --scale 0.2 1"
CIFAR_OPTIONS += " --colorjitter 0.4 0.4 0.4 0.4 --random-grayscale 0.2"

BLOBS = ((3, 0.05), (3, 0.12), (5, 0.05), (5, 0.12), (8, 0.05), (8, 0.12), (12, 0.05), (12, 0.12), (20, 0.05))
"""Number and noise."""


@dataclass(frozen=True)
class Case:
    """Features (N, D) of `classes` classes; `group` is their row of the summary."""

    group: str
    name: str
    classes: int
    features: Tensor


def cases(sessions: Path, cifar: Optional[str]) -> Iterator[Case]:
    """All cases, one after the other. A network without a session in the folder is trained into it."""
    for number, noise in BLOBS:
        yield Case("blobs", f"{number} blobs, sizes 10 to 1, noise {noise}", number, blobs(number, noise))
    for group, networks in (("digits", DIGITS), ("digits, held out", HELD_OUT)):
        for classes, seeds in networks.items():
            for seed in seeds:
                name = f"digits-{classes.replace(' ', '')}-{seed}"
                options = ["--classes", *classes.split(), "--seed", str(seed)]
                features, _ = _learnt(sessions, name, options)
                yield Case(group, f"digits {classes}, seed {seed}", len(classes.split()), features)
    if cifar is None:
        return
    for classes, limit in CIFAR.items():
        name = f"cifar-{classes.replace(' ', '')}"
        options = ["--classes", *classes.split(), "--limit-train", str(limit), "--data-root", cifar]
        features, pipeline = _learnt(sessions, name, [*CIFAR_OPTIONS.split(), *options])
        number = len(classes.split())
        yield Case("CIFAR-10", f"CIFAR-10, {number} classes, {limit} images, network", number, features)
        yield Case("CIFAR-10", f"CIFAR-10, {number} classes, {limit} images, pixels", number, _pixels(pipeline))


def blobs(number: int, noise: float, largest: int = 500, dim: int = 64) -> Tensor:
    """Gaussian blobs around random directions, of unit length; the largest has ten times the smallest's rows."""
    source = torch.Generator().manual_seed(number)
    centres = F.normalize(torch.randn(number, dim, generator=source), dim=1)
    sizes = torch.tensor([largest * 10 ** (-blob / (number - 1)) for blob in range(number)]).round().long()
    rows = centres.repeat_interleave(sizes, dim=0)
    return F.normalize(rows + noise * torch.randn(rows.shape, generator=source), dim=1)


def _learnt(sessions: Path, name: str, options: list[str]) -> tuple[Tensor, Pipeline]:
    """Features of the training images by the network of a session, which is trained first if it is missing."""
    if not (sessions / name / "checkpoint" / "finished").exists():
        command = [sys.executable, "main.py", "--cfgs", "configs/base.yaml", "configs/digits.yaml"]
        command += [*OPTIONS, *options]
        command += ["--sess-dir", str(sessions), "--session", name, "--brief", "--no-log-tfb", "--gpus", "cpu"]
        if (sessions / name).exists():
            command = [sys.executable, "main.py", "--resume", str(sessions / name)]
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (sessions / name / "checkpoint" / "finished").touch()
    saved = checkpoint.load(newest_checkpoint(sessions / name))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in saved["options"].items()}
    run = Options(**values)
    world = World.alone()
    pipeline = Pipeline(datasets.load(run.dataset, run.data_root, False), run, world.device)
    embedder = build_embedder(run, world, None)
    load_exactly(embedder.network, saved["net"], name)
    rows = slice(0, len(pipeline.train))
    return extract(embedder, pipeline.train_batches_plain(), rows, run.low_dim), pipeline


def _pixels(pipeline: Pipeline) -> Tensor:
    """The training images as unit vectors of their first 64 principal components."""
    images = torch.cat([images.flatten(1) for images, _ in pipeline.train_batches_plain()])
    centred = images - images.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    return F.normalize(centred @ axes[:64].t(), dim=1)
