"""What is timed. Each case is a function from a Setting to rows of the report."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import models
from benchmarks import textbook
from benchmarks.timing import Row, seconds, take_turns
from datasets.augment_parameters import Recipe
from datasets.device_loader import DeviceLoader, to_device
from datasets.image_set import ImageSet
from datasets.loading import WorkerLoader
from datasets.transforms import train_transform
from lib import precision
from lib.config import Options
from lib.embedder import Embedder
from lib.evaluation.features import extract
from lib.evaluation.knn import weighted_knn
from lib.method.discovery import discover
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.tiled_objective import tiled_and_loss
from lib.training.epoch import train_epoch
from lib.training.optimisation import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
MEANS, STDS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly: the device, how often each contender runs, and the sizes of the paper's CIFAR-10."""

    device: torch.device
    repeats: int
    images: int = 50_000
    test_images: int = 10_000
    batch: int = 128
    dim: int = 128

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def unit_rows(self, count: int, seed: int = 0) -> Tensor:
        rows = torch.randn(count, self.dim, generator=torch.Generator().manual_seed(seed))
        return F.normalize(rows, dim=1).to(self.device)

    def pixels(self, count: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)

    def turns(self, contenders: dict[str, Callable[[], object]], repeats: int = 0) -> dict[str, float]:
        return take_turns(contenders, repeats or self.repeats, self.synchronise)


def head(setting: Setting) -> list[Row]:
    """Loss forward and backward over all rows; the limit is its two matrix products."""
    memory = setting.unit_rows(setting.images)
    features = setting.unit_rows(setting.batch, 1).requires_grad_()
    members = torch.randint(setting.images, (setting.batch, 2), device=setting.device)

    def products() -> None:
        with torch.no_grad():
            (features @ memory.t()) @ memory

    times = setting.turns(
        {
            "ours": lambda: tiled_and_loss(features, memory, members, 0.1).backward(),
            "textbook": lambda: textbook.loss(features, memory, members, 0.1).backward(),
            "limit": products,
        },
        5 * setting.repeats,
    )
    return [Row(f"loss head, N = {setting.images:,}, fp32", **times)]


def large_head(setting: Setting) -> list[Row]:
    """The same at ImageNet's size, where the plain form would hold some 4 GB."""
    memory = setting.unit_rows(1_281_167)
    features = setting.unit_rows(256, 1).requires_grad_()
    members = torch.randint(len(memory), (256, 2), device=setting.device)
    times = setting.turns({"ours": lambda: tiled_and_loss(features, memory, members, 0.1).backward()}, 2)
    return [Row("loss head, N = 1,281,167, B = 256, fp32", **times)]


def augmentation(setting: Setting) -> list[Row]:
    """A batch of training images, one core for each side."""
    pixels, options = setting.pixels(2048), Options()
    recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, 0.0)
    loader = DeviceLoader(to_device(pixels, setting.device), 32, 32, MEANS, STDS, recipe, 0)
    plain = WorkerLoader(ImageSet(pixels), _transform(options), setting.batch, 0, 0, torch.device("cpu"))
    order = [torch.arange(setting.batch)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = setting.turns(
            {
                "ours": lambda: list(loader.batches(order, (0, 0))),
                "textbook": lambda: list(plain.batches(order, (0, 0))),
            },
            3 * setting.repeats,
        )
    finally:
        torch.set_num_threads(threads)
    return [Row(f"augmentation of {setting.batch} images, one core", **times)]


def _transform(options: Options):
    return train_transform(
        32, options.scale, options.ratio, options.colorjitter, options.random_grayscale, False, MEANS, STDS
    )


def step(setting: Setting) -> list[Row]:
    """A training step with everything in it; the limit is the bare network's forward, backward and optimiser step."""
    rows = [_step(setting, "fp32")]
    if precision.has_bf16(setting.device):
        rows.append(_step(setting, "bf16"))
    return rows


def _step(setting: Setting, in_precision: str) -> Row:
    options = replace(Options(), workers_num=2)
    dtype = precision.choose(in_precision, setting.device)
    pixels, steps = setting.pixels(4096), 2
    order = torch.arange(steps * setting.batch).split(setting.batch)
    bank = MemoryBank(setting.images, setting.dim, 0.5).to(setting.device)
    found = Neighbourhoods.of(
        torch.arange(setting.images, device=setting.device),
        torch.randint(setting.images, (setting.images, 1), device=setting.device),
        torch.zeros(setting.images, device=setting.device),
        None,
    )
    recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, 0.0)
    loader = DeviceLoader(to_device(pixels, setting.device), 32, 32, MEANS, STDS, recipe, 0)
    embedder, optimizer = _network(setting, options, dtype)
    bare, bare_optimizer = _network(setting, options, dtype)
    plain, plain_optimizer = _network(setting, options, None, channels_last=False)
    workers = WorkerLoader(ImageSet(pixels), _transform(options), setting.batch, 2, 0, setting.device)
    images = torch.randn(setting.batch, 3, 32, 32, device=setting.device)
    upstream = setting.unit_rows(setting.batch)

    def ours() -> None:
        train_epoch(embedder, bank, found, optimizer, loader.batches(order, (0, 0)), (setting.batch,) * steps, 0.1)

    def as_in_a_textbook() -> None:
        plain.network.train()
        for batch, indices in workers.batches(order, (0, 0)):
            textbook.step(plain.network, plain_optimizer, batch, indices, bank.memory, found.members(indices))

    def network_alone() -> None:
        bare.train()
        for _ in range(steps):
            bare_optimizer.zero_grad(set_to_none=True)
            bare(images).backward(upstream)
            bare_optimizer.step()

    times = setting.turns({"ours": ours, "textbook": as_in_a_textbook, "limit": network_alone})
    workers.close()
    per_step = {name: value / steps for name, value in times.items()}
    return Row(f"training step, ResNet18, B = {setting.batch}, {in_precision}", **per_step)


def _network(setting: Setting, options: Options, dtype, channels_last: bool = True):
    network = models.build("resnet18", setting.dim, "small", 32)
    embedder = Embedder(network, setting.device, dtype)
    if not channels_last:
        network.to(memory_format=torch.contiguous_format)
    return embedder, build_optimizer(options, network.parameters())


def discovery(setting: Setting) -> list[Row]:
    """Entropies, anchors and the neighbours of all; the limit is one product of the bank with itself."""
    memory = setting.unit_rows(setting.images)

    def product() -> None:
        for block in memory.split(1024):
            block @ memory.t()

    times = setting.turns(
        {
            "ours": lambda: discover(memory, 4, 0.25, 1, 0.1),
            "textbook": lambda: textbook.discovery(memory, 0.1, 1),
            "limit": product,
        }
    )
    other = setting.turns({"faiss": lambda: discover(memory, 4, 0.25, 1, 0.1, "faiss")}, 1)["faiss"]
    return [Row(f"discovery, N = {setting.images:,}", **times, note=f"with faiss {other:.2f} s")]


def evaluation(setting: Setting) -> list[Row]:
    """kNN of all test images, their forwards included (timed on a tenth of them and scaled); the limit: forwards."""
    options = Options()
    part = setting.test_images // 10
    database, labels = setting.unit_rows(setting.images), torch.randint(10, (setting.images,), device=setting.device)
    queries, truth = setting.unit_rows(setting.test_images, 1), torch.zeros_like(labels[: setting.test_images])
    embedder, _ = _network(setting, options, precision.choose("auto", setting.device))
    plain, _ = _network(setting, options, None, channels_last=False)
    loader = DeviceLoader(to_device(setting.pixels(part), setting.device), 32, 32, MEANS, STDS, None, 0)
    order = torch.arange(part)

    def plain_forwards() -> None:
        plain.network.eval()
        with torch.no_grad():
            for batch, _ in loader.batches(order.split(100), ()):
                plain.network(batch)

    times = setting.turns(
        {
            "forwards": lambda: extract(embedder, loader.batches(order.split(512), ()), part, setting.dim),
            "vote": lambda: weighted_knn(queries, truth, database, labels, 10, 200, 0.1),
            "plain forwards": plain_forwards,
            "plain vote": lambda: textbook.knn(queries, database, labels, 10, 200, 0.1),
        }
    )
    return [
        Row(
            f"kNN evaluation, {setting.test_images:,} x {setting.images:,}",
            ours=10 * times["forwards"] + times["vote"],
            textbook=10 * times["plain forwards"] + times["plain vote"],
            limit=10 * times["forwards"],
            note=f"the vote alone: {times['vote']:.2f} s, textbook {times['plain vote']:.2f} s",
        )
    ]


def start_up(setting: Setting) -> list[Row]:
    """Whole processes."""

    def process(*arguments: str) -> Callable[[], object]:
        command = [sys.executable, "main.py", *arguments]
        return lambda: subprocess.run(command, cwd=ROOT, capture_output=True)

    tiny = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--debug", "--limit-train", "2", "--limit-test", "2"]
    tiny += ["--max-round", "1", "--max-epoch", "1"]
    return [
        Row("main.py --help", setting.turns({"x": process("--help")})["x"]),
        Row("a mistake in the options", setting.turns({"x": process("--batch-size", "x")})["x"]),
        Row("digits: from the command to the end of a first step", seconds(process(*tiny))),
    ]


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "head": head,
    "large-head": large_head,
    "augmentation": augmentation,
    "step": step,
    "discovery": discovery,
    "evaluation": evaluation,
    "start-up": start_up,
}
