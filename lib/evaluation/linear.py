"""Protocol `linear`: a linear classifier on the frozen network's activations, stage by stage."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import RunError, not_none
from lib.evaluation.evaluator import Protocol, Results
from lib.evaluation.features import Features
from lib.evaluation.knn import Accuracy, classes_ahead, one_class
from lib.logger.console import LOGGER
from lib.runtime.memory import physical_memory
from lib.seeding import generator

MOST_VALUES = 10_000
"""Values of an image and stage after pooling, at most."""
HELD_OUT = 0.1
"""Share of the training images that the penalty is chosen on."""
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties, tried from the strongest on; each fit starts from the classifier of the one before."""
PATIENCE = 2
"""Penalties without a gain in accuracy after which weaker ones are not tried."""
STEPS = 100
"""L-BFGS iterations at most, for each penalty and for the final classifier."""
SHARED_PASS_BYTES = 2 * 2**30
"""Bytes of features up to which several stages are computed in one pass; above, each pass is for one stage."""

BLOCK_ELEMENTS = 2**24
"""Numbers in a block of rows, or in its scores, that are processed together."""

Stages = Callable[[Tensor], dict[str, Tensor]]

_SLICE = 4096  # rows that are processed together where not all are needed

log = logging.getLogger(LOGGER)


@dataclass(frozen=True)
class StageResult:
    """The result of one stage: values of an image, the chosen penalty, accuracies, and the seconds it took."""

    stage: str
    values: int
    penalty: float
    held_out_top1: float
    accuracy: Accuracy
    seconds: float


def pooled_side(channels: int, height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width after pooling: the map's own, but at most sqrt(most / channels) each, and at least 1."""
    side = max(1, math.isqrt(most // channels))
    return min(side, height), min(side, width)


def pooled(maps: Tensor, most: int) -> Tensor:
    """(B, C, H, W) by adaptive average pooling, or (B, D) as they are, to (B, d) float32 with d at most `most`.

    A map of more than `most` channels keeps one value of each.
    """
    maps = maps.float()
    if maps.dim() == 2:
        return maps
    height, width = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, pooled_side(maps.shape[1], height, width, most)).flatten(1)


@torch.no_grad()
def pooled_widths(outputs: Stages, images: Tensor, most: int) -> dict[str, int]:
    """d of every stage, in the order of the network, found with some images (B, 3, S, S)."""
    return {stage: pooled(maps, most).shape[1] for stage, maps in outputs(images).items()}


@torch.no_grad()
def stage_rows(
    outputs: Stages,
    batches: Iterable[tuple[Tensor, Tensor]],
    rows: slice,
    widths: dict[str, int],
    stages: Sequence[str],
    most: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The pooled activations of the named stages for every image.

    Args:
        outputs: images (B, 3, S, S) to the activations of every stage.
        batches: pairs of images and row numbers (B,), each row of `rows` once.
        rows: the rows that `batches` contain.
        widths: d of every stage.
        most: values of an image and stage.
        device: where the rows are kept.

    Returns:
        (rows, d) float32 for each stage.
    """
    count = rows.stop - rows.start
    kept = {stage: torch.empty(count, widths[stage], device=device) for stage in stages}
    for images, indices in batches:
        positions = (indices - rows.start).to(device)
        found = outputs(images)
        for stage, into in kept.items():
            into[positions] = pooled(found[stage], most).to(device)
    return kept


@dataclass(frozen=True, eq=False)
class Classifier:
    """A linear classifier: the scores of row x are x weights + bias, and the highest is the class. On the CPU.

    Attributes:
        weights: (d, C) float64.
        bias: (C,) float64.
        objective: what was minimised.
        steps: iterations of L-BFGS.
    """

    weights: np.ndarray
    bias: np.ndarray
    objective: float
    steps: int

    def scores(self, rows: Tensor, device: torch.device) -> Tensor:
        """(n, d) -> (n, C) float32 on the device."""
        weights, bias = _on(device, self.weights, self.bias)
        return torch.addmm(bias, rows.to(device), weights)


def fit_classifier(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    world: World,
    start: Optional[Classifier] = None,
    steps: int = 100,
    included: Optional[Tensor] = None,
) -> Classifier:
    """Minimises the mean cross-entropy + penalty / 2 ||weights||^2; the bias is free.

    scikit-learn's LogisticRegression(C = 1 / (n penalty)) minimises the same. The fit is deterministic. With several
    processes each has its rows, and all take the same steps.

    Args:
        rows: (n, d) float32, on `world.device` or on the CPU, from where it goes there in blocks.
        labels: (n,) int64 in [0, C), where the rows are.
        classes: C.
        penalty: above 0.
        world: the processes of the run.
        start: the classifier to start from; None: all zero.
        steps: L-BFGS iterations at most.
        included: (n,) bool, the rows to fit, on the device of `rows`; None: all. Over all processes there must be at
            least one.
    """
    dim, device = rows.shape[1], world.device
    if included is None:
        included = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    count = sum(world.counts(int(included.sum())))
    at_once = max(1, BLOCK_ELEMENTS // max(dim, classes))

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[: dim * classes].reshape(dim, classes), point[dim * classes :]
        # one float64 vector, so that one exchange adds up loss and gradient
        total = torch.zeros(1 + point.size, dtype=torch.float64, device=device)
        on_device = _on(device, weights, bias)
        for parts in zip(rows.split(at_once), labels.split(at_once), included.split(at_once)):
            _add_block(total, *(part.to(device) for part in parts), *on_device)
        mean = (world.all_reduce_sum(total) / count).cpu().numpy()
        value = mean[0] + 0.5 * penalty * float((weights**2).sum())
        gradient = mean[1:]
        gradient[: dim * classes] += penalty * weights.ravel()
        return value, gradient

    first = np.zeros(dim * classes + classes)
    if start is not None:
        first = np.concatenate([start.weights.ravel(), start.bias])
    found = scipy.optimize.minimize(
        value_and_gradient, first, jac=True, method="L-BFGS-B", options={"maxiter": steps, "gtol": 1e-6, "ftol": 1e-9}
    )
    weights = found.x[: dim * classes].reshape(dim, classes)
    return Classifier(weights, found.x[dim * classes :], float(found.fun), int(found.nit))


def _add_block(total: Tensor, rows: Tensor, labels: Tensor, included: Tensor, weights: Tensor, bias: Tensor) -> None:
    """Adds the cross-entropy of rows (b, d), and its gradient by weights (d, C) and bias (C,), to a flat vector."""
    if not len(rows):
        return
    log_shares = torch.log_softmax(torch.addmm(bias, rows, weights), dim=1)  # (b, C)
    total[0] -= log_shares.gather(1, labels[:, None])[included].double().sum()
    excess = log_shares.exp_()
    excess[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    excess *= included[:, None]
    total[1 : 1 + weights.numel()] += (rows.t() @ excess).double().flatten()
    total[1 + weights.numel() :] += excess.double().sum(dim=0)


def _on(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32) for array in arrays)


class Linear(Protocol):
    """Multinomial logistic regression on each stage.

    It sees the activations of the training images with the test transform, pooled by adaptive averaging to at most
    `MOST_VALUES`, every value brought to mean 0 and standard deviation 1 over these images.

    Cross-entropy with an L2 penalty, by L-BFGS over all images. The penalty is the one of `PENALTIES` with the best
    accuracy on a tenth of the training images drawn by the seed, the strongest of equals; with it the classifier is
    fitted to all of them. A function of network, images and seed. The test images have no part in any choice.

    Args:
        pipeline: the images with their labels.
        world: the processes of the run. Each holds the activations of its share of the images.
        every: epochs between evaluations.
        seed: of the part held out.
        size: side of the images that the network sees, in pixels.
    """

    name = "linear"

    def __init__(self, pipeline: Pipeline, world: World, every: int, seed: int, size: int):
        self.pipeline, self.world, self.every = pipeline, world, every
        self._size = size
        count = len(pipeline.train)
        held_out = torch.zeros(count, dtype=torch.bool)
        held_out[torch.randperm(count, generator=generator(seed, "linear"))[: math.ceil(HELD_OUT * count)]] = True
        self._held_out = held_out[world.rows(count)]

    @classmethod
    def create(cls, name: str, options: Options, pipeline: Pipeline, world: World) -> "Linear":
        return cls(pipeline, world, options.linear_freq, options.seed, options.size)

    def obstacle(self) -> Optional[str]:
        if self.pipeline.train.labels is None:
            nothing = f"the training images of {self.pipeline.name} have no labels to learn from"
            return one_class(self.pipeline) or nothing
        if self.pipeline.test is None:
            return f"{self.pipeline.name} has no test images to evaluate on"
        if self.pipeline.test.labels is None:
            return f"the test images of {self.pipeline.name} have no labels to evaluate on"
        return None

    def evaluate(self, features: Features) -> Results:
        """The results, on every process."""
        results = self.results(features)
        scalars: dict[str, Optional[float]] = {}
        for result in results:
            scalars[f"linear_{result.stage}_top1"] = result.accuracy.top1
            scalars[f"linear_{result.stage}_top5"] = result.accuracy.top5
        best = max(results, key=lambda result: result.accuracy.top1)
        return Results(scalars, f"best of {len(results)} layers {best.stage}, {best.accuracy}", _table(results))

    def results(self, features: Features) -> list[StageResult]:
        """One for each stage, in the order of the network."""
        outputs = features.embedder.eval_stages()
        widths = pooled_widths(
            outputs, torch.zeros(1, 3, self._size, self._size, device=self.world.device), MOST_VALUES
        )
        found = []
        for stages in self._passes(widths):
            started = time.perf_counter()
            train, test = (self._rows(outputs, images, stages, widths) for images in ("train", "test"))
            shared = (time.perf_counter() - started) / len(stages)
            for stage in stages:
                result = self._evaluate_stage(stage, train.pop(stage), test.pop(stage), shared)
                log.info("linear, %s: %s, %.0f s", stage, result.accuracy, result.seconds)
                found.append(result)
        return found

    def _passes(self, widths: dict[str, int]) -> list[list[str]]:
        """The stages of each pass over the images: all in one if they take little memory, else one each."""
        images = (len(self.pipeline.train) + len(not_none(self.pipeline.test))) / self.world.size
        if 4 * images * sum(widths.values()) <= SHARED_PASS_BYTES:
            return [list(widths)]
        return [[stage] for stage in widths]

    def _rows(self, outputs: Stages, images: str, stages: list[str], widths: dict[str, int]) -> dict[str, Tensor]:
        """The pooled activations (n, d) of this process's share of the `train` or `test` images."""
        pipeline = self.pipeline
        batches = pipeline.train_batches_plain() if images == "train" else pipeline.test_batches()
        rows = self.world.rows(len(getattr(pipeline, images)))
        size = 4 * (rows.stop - rows.start) * sum(widths[stage] for stage in stages)
        device = _device_for(size, self.world.device)
        if device.type == "cpu":
            _check_memory(size, stages, images)
        return stage_rows(outputs, batches, rows, widths, stages, MOST_VALUES, device)

    def _evaluate_stage(self, stage: str, train: Tensor, test: Tensor, seconds: float) -> StageResult:
        started = time.perf_counter()
        world, classes = self.world, len(self.pipeline.train.classes)
        labels = torch.from_numpy(self.pipeline.train.labels)[world.rows(len(self.pipeline.train))].to(train.device)
        mean, deviation = _moments(train, world)
        train.sub_(mean).div_(deviation)  # in place: they may take gigabytes
        test.sub_(mean.to(test.device)).div_(deviation.to(test.device))  # train and test may be on different devices
        penalty, held_out_top1, start = self._choose_penalty(train, labels, classes)
        classifier = fit_classifier(train, labels, classes, penalty, world, start, STEPS)
        images = not_none(self.pipeline.test)
        truth = torch.from_numpy(images.labels)[world.rows(len(images))]
        accuracy = _accuracy(classifier, test, truth, classes, world)
        seconds += time.perf_counter() - started
        return StageResult(stage, train.shape[1], penalty, held_out_top1, accuracy, seconds)

    def _choose_penalty(self, rows: Tensor, labels: Tensor, classes: int) -> tuple[float, float, Classifier]:
        """The penalty with the best accuracy on the held-out part, that accuracy, and the classifier it gave."""
        held_out = self._held_out.to(rows.device)
        held_out_rows, held_out_labels = rows[held_out], labels[held_out].cpu()
        best: Optional[tuple[float, float, Classifier]] = None
        start, without_gain = None, 0
        for penalty in PENALTIES:
            start = fit_classifier(rows, labels, classes, penalty, self.world, start, STEPS, ~held_out)
            top1 = _accuracy(start, held_out_rows, held_out_labels, classes, self.world).top1
            without_gain = 0 if best is None or top1 > best[1] else without_gain + 1
            if without_gain == 0:
                best = (penalty, top1, start)
            elif without_gain == PATIENCE:
                break
        return not_none(best)


def _device_for(size: int, device: torch.device) -> torch.device:
    """The device for activations of this many bytes: the GPU if twice as many are free, else the CPU."""
    if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device


def _check_memory(size: int, stages: list[str], images: str) -> None:
    """Refuse activations that take `size` bytes in each process of a machine, if they do not fit."""
    size, available = size * ProcessInfo.here().local_size, physical_memory()
    if size > 0.8 * available:
        raise RunError(
            f"--protocol linear: {', '.join(stages)} of the {images} images would take {size / 2**30:.0f} of "
            f"{available / 2**30:.0f} GiB of memory; use fewer images (--limit-train) or more machines"
        )


def _moments(rows: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of each value over the rows of all processes; 1 where nothing varies.

    Two passes over the rows, a slice at a time: a float64 copy of all rows would not fit.
    """
    count = sum(world.counts(len(rows)))

    def mean_of(function: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for part in rows.split(_SLICE):
            total += function(part.double()).sum(dim=0)
        return world.all_reduce_sum(total.to(world.device)).to(rows.device) / count

    mean = mean_of(lambda part: part)
    deviation = mean_of(lambda part: (part - mean) ** 2).sqrt()
    is_constant = deviation <= 1e-6 * (1e-6 + mean.abs())
    return mean.float(), deviation.masked_fill(is_constant, 1.0).float()


def _accuracy(classifier: Classifier, rows: Tensor, labels: Tensor, classes: int, world: World) -> Accuracy:
    """Over the rows (n, d) and labels (n,) on the CPU of all processes."""
    counts = torch.zeros(3, dtype=torch.float64)
    for part, truth in zip(rows.split(_SLICE), labels.split(_SLICE)):
        ahead = classes_ahead(classifier.scores(part, world.device).cpu(), truth)
        counts += torch.tensor([len(truth), int((ahead == 0).sum()), int((ahead < 5).sum())])
    total, first, fifth = world.all_reduce_sum(counts.to(world.device)).tolist()
    return Accuracy(first / total, fifth / total if classes >= 5 else None)


def _table(results: list[StageResult]) -> str:
    from prettytable import PrettyTable

    table = PrettyTable(["layer", "values", "penalty", "top-1", "top-5", "seconds"])
    table.align = "r"
    table.align["layer"] = "l"
    for result in results:
        top5 = "-" if result.accuracy.top5 is None else f"{100 * result.accuracy.top5:.2f} %"
        row = [result.stage, f"{result.values:,}", f"{result.penalty:.1g}", f"{100 * result.accuracy.top1:.2f} %", top5]
        table.add_row([*row, f"{result.seconds:.0f}"])
    return table.get_string()
