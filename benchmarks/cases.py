"""The timed cases. Each is a function from a Setting to rows of the report."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import torch

import models
from benchmarks import imagenet_size
from benchmarks.bare_step import BareStep
from benchmarks.busy import busy_machine
from benchmarks.epoch_end import epoch_end
from benchmarks.memory import peak_beyond
from benchmarks.processes import shards, split_over_processes
from benchmarks.setting import Setting
from benchmarks.textbook import MEANS, STDS
from benchmarks.textbook_process import TextbookProcess
from benchmarks.timing import ONCE, Row, seconds
from datasets.loaders.device import DeviceLoader, to_device
from datasets.transforms.batch import Recipe
from lib.config import Options
from lib.evaluation.knn import weighted_knn
from lib.method.discovery import discover
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import and_loss
from lib.nn.embedder import Embedder
from lib.nn.winograd import count_winograd, use_winograd
from lib.runtime.device import choose_precision, has_bf16
from lib.training.cuda_graph import EAGER_STEPS, CapturedStep
from lib.training.epoch import train_epoch
from lib.training.optim import build_optimizer
from lib.training.step import Step

ROOT = Path(__file__).resolve().parents[1]


def head(setting: Setting) -> list[Row]:
    """Loss forward and backward over all rows; the limit is its two matrix products."""
    memory, features = setting.unit_rows(setting.images), setting.unit_rows(setting.batch, 1)

    def products() -> None:
        (features @ memory.t()) @ memory

    ours = _loss(setting, setting.images, setting.batch)
    with TextbookProcess("head", setting) as textbook:
        times = setting.turns({"ours": ours, "textbook": textbook, "limit": products}, 7 * setting.repeats)
    beyond = peak_beyond(_loss, setting, setting.images, setting.batch, device=setting.device)
    return [Row(f"loss head, N = {setting.images:,}, fp32", **times, memory=beyond)]


def _loss(setting: Setting, images: int, batch: int) -> Callable[[], object]:
    memory, features = setting.unit_rows(images), setting.unit_rows(batch, 1).requires_grad_()
    members = setting.pairs(images)[:batch].clone()
    return lambda: and_loss(features, memory, members, 0.1).backward()


def augmentation(setting: Setting) -> list[Row]:
    """A batch of training images, one core for each side."""
    loader = _loader(setting, 2048)
    order = [torch.arange(setting.batch)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TextbookProcess("augmentation", setting) as textbook:
            contenders = {"ours": lambda: list(loader.batches(order, (0, 0))), "textbook": textbook}
            times = setting.turns(contenders, 7 * setting.repeats)
    finally:
        torch.set_num_threads(threads)
    return [Row(f"augmentation of {setting.batch} images, one core", **times)]


def step(setting: Setting) -> list[Row]:
    """A whole training step; the limit is the bare network's forward, backward and optimiser step.

    Both use Winograd convolutions where a run does; the note gives the time of the bare step without them.
    """
    kinds = ["fp32", "bf16"] if has_bf16(setting.device) else ["fp32"]
    with TextbookProcess("step", setting) as textbook:
        return [_step(setting, kind, textbook) for kind in kinds]


def _step(setting: Setting, kind: str, textbook: TextbookProcess) -> Row:
    dtype = choose_precision(kind, setting.device)
    order = torch.arange(setting.steps * setting.batch).split(setting.batch)
    bank = MemoryBank(setting.images, setting.dim, 0.5).to(setting.device)
    found = Neighbourhoods.of(
        torch.arange(setting.images, device=setting.device),
        setting.pairs(setting.images)[:, 1:],
        torch.zeros(setting.images, device=setting.device),
        None,
    )
    loader = _loader(setting, max(4096, setting.steps * setting.batch))
    embedder, optimizer = _network(setting, dtype)
    bare, bare_optimizer = _network(setting, dtype)
    for each in (embedder, bare):
        each.train()
    images = torch.randn(setting.batch, 3, 32, 32, device=setting.device)
    upstream = setting.unit_rows(setting.batch)
    one_step, bare_step = Step(embedder, bank, optimizer, 0.1), BareStep(bare, bare_optimizer)
    captured = setting.device.type == "cuda"
    if captured:
        one_step, bare_step = CapturedStep(one_step), CapturedStep(bare_step)

    def ours() -> None:
        train_epoch(one_step, found, loader.batches(order, (0, 0)), (setting.batch,) * setting.steps)

    def alone(network_step: BareStep) -> Callable[[], None]:
        def turn() -> None:
            for _ in range(setting.steps):
                network_step(images, upstream, setting.batch)

        return turn

    def augmentation_alone() -> None:
        for _ in loader.batches(order, (0, 0)):
            pass

    for _ in range(math.ceil((EAGER_STEPS + 1) / setting.steps) if captured else 0):  # both are captured after these
        ours()
        alone(bare_step)()
    contenders = {"ours": ours, "textbook": textbook, "limit": alone(bare_step), "augmentation": augmentation_alone}
    if count_winograd(bare.network):
        plain, plain_optimizer = _network(setting, dtype, winograd=False)
        plain.train()
        contenders["plain"] = alone(BareStep(plain, plain_optimizer))
    times = setting.turns(contenders)
    per_step = {name: value / setting.steps for name, value in times.items()}
    note = f"augmentation alone: {100 * per_step.pop('augmentation') / per_step['ours']:.1f} % of ours"
    if "plain" in per_step:
        note += f"; the limit with plain convolutions: {per_step.pop('plain'):.2f} s"
    return Row(f"training step, ResNet18, B = {setting.batch}, {kind}", **per_step, note=note)


def discovery(setting: Setting) -> list[Row]:
    """Entropies, anchors and the neighbours of all; the limit is one product of the bank with itself."""
    memory = setting.unit_rows(setting.images)

    def product() -> None:
        for block in memory.split(1024):
            block @ memory.t()

    with TextbookProcess("discovery", setting) as textbook:
        ours = {"ours": lambda: discover(memory, 4, 0.25, 1, 0.1), "textbook": textbook, "limit": product}
        times = setting.turns(ours)
    other = setting.turns({"faiss": lambda: discover(memory, 4, 0.25, 1, 0.1, "faiss")}, 1)["faiss"]
    return [Row(f"discovery, N = {setting.images:,}", **times, note=f"with faiss {other:.2f} s ({ONCE})")]


def evaluation(setting: Setting) -> list[Row]:
    """kNN evaluation: folding the network, forwards (timed on a tenth of the test images and scaled), and the vote.

    The limit is the forwards of the folded network alone, on images already prepared.
    """
    part = setting.test_images // 10
    database, labels = setting.unit_rows(setting.images), torch.randint(10, (setting.images,), device=setting.device)
    queries, truth = setting.unit_rows(setting.test_images, 1), torch.zeros_like(labels[: setting.test_images])
    embedder, _ = _network(setting, choose_precision("auto", setting.device))
    loader = DeviceLoader(to_device(setting.pixels(part), setting.device), 32, MEANS, STDS, None, 0)
    batches = torch.arange(part).split(512)
    folded, features = embedder.eval_copy(), torch.empty(part, setting.dim, device=setting.device)
    ready = [images for images, _ in loader.batches(batches, ())]

    @torch.inference_mode()
    def forwards() -> None:  # as lib.evaluation.features.extract does it, which would fold the network for each part
        for images, indices in loader.batches(batches, ()):
            features[indices] = folded(images)

    @torch.inference_mode()
    def network_alone() -> None:
        for images in ready:
            folded(images)

    with TextbookProcess("forwards", setting) as plain_forwards, TextbookProcess("knn", setting) as plain_vote:
        times = setting.turns(
            {
                "folding": embedder.eval_copy,
                "forwards": forwards,
                "plain forwards": plain_forwards,
                "network alone": network_alone,
                "vote": lambda: weighted_knn(queries, truth, database, labels, 10, 200, 0.1),
                "plain vote": plain_vote,
            }
        )
    return [
        Row(
            f"kNN evaluation, {setting.test_images:,} x {setting.images:,}",
            ours=times["folding"] + 10 * times["forwards"] + times["vote"],
            textbook=10 * times["plain forwards"] + times["plain vote"],
            limit=10 * times["network alone"],
            note=f"the vote alone: {times['vote']:.2f} s, textbook {times['plain vote']:.2f} s; folding the network: "
            f"{times['folding']:.2f} s",
        )
    ]


def _loader(setting: Setting, images: int) -> DeviceLoader:
    """Training images as a run serves them."""
    options = Options()
    recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, 0.0)
    return DeviceLoader(to_device(setting.pixels(images), setting.device), 32, MEANS, STDS, recipe, 0)


def _network(
    setting: Setting, dtype: Optional[torch.dtype], winograd: bool = True
) -> tuple[Embedder, torch.optim.Optimizer]:
    network = models.build("resnet18", setting.dim, "small", 32)
    if winograd:
        use_winograd(network, setting.device, dtype)
    embedder = Embedder(network, setting.device, dtype)
    return embedder, build_optimizer(Options(), network.parameters())


def start_up(setting: Setting) -> list[Row]:
    """Whole processes of main.py, from start to exit."""

    def process(*arguments: str) -> Callable[[], object]:
        command = [sys.executable, "main.py", *arguments]
        return lambda: subprocess.run(command, cwd=ROOT, capture_output=True)

    tiny = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--debug", "--limit-train", "2", "--limit-test", "2"]
    tiny += ["--max-round", "1", "--max-epoch", "1"]
    return [
        Row("main.py --help", setting.turns({"x": process("--help")})["x"]),
        Row("a mistake in the options", setting.turns({"x": process("--batch-size", "x")})["x"]),
        Row("digits: from the command to the end of a first step", seconds(process(*tiny)), note=ONCE),
    ]


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "head": head,
    "augmentation": augmentation,
    "step": step,
    "discovery": discovery,
    "evaluation": evaluation,
    "epoch-end": epoch_end,
    "start-up": start_up,
    "busy": busy_machine,
    "processes": split_over_processes,
    "shards": shards,
    "imagenet-loss": imagenet_size.loss,
    "imagenet-exact": imagenet_size.exact,
    "imagenet-lists": imagenet_size.approximate,
}
