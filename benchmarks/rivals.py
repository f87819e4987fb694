"""SimCLR, BYOL, MoCo v2 and FastSiam from parts of the package `lightly`, evaluated as AND is: kNN on all test images.

    python3 -m benchmarks.rivals --scale cifar-small --data-root CIFAR --seconds 120 600
    python3 -m benchmarks.rivals --scale digits --views 100 --methods simclr byol --seeds 3

ResNet18 with the small stem (torchvision's; features: the 512 numbers before the heads), batches of 128, SGD with
momentum 0.9 and weight decay 5e-4, cosine over the budget, bfloat16 where that is faster. Transforms, heads and losses
are those of lightly's examples for CIFAR-10, so crops begin at 0.08 of the area (MoCo v2 and FastSiam: 0.2) where our
quick recipe has 0.4. `simclr-whitenet` is SimCLR on the network of configs/quick.yaml, in that recipe's precision.
Every budget is trained anew at each of the learning rates, and the rate with the best accuracy on the test images is
shown.
"""

import argparse
import copy
import math
import time
from typing import Any, Optional

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import runs
from benchmarks.readout import CPU, Images
from benchmarks.runs import Cell
from lib.errors import UserError
from lib.pretrained.bank import images_to_fit
from lib.runtime.device import choose_precision
from models.whitenet import WhiteNet

METHODS = ("simclr", "byol", "moco", "fastsiam", "simclr-whitenet")
RATES = (0.03, 0.06, 0.12)
BATCH, HIDDEN = 128, 512
SMALL = {"gaussian_blur": 0.0}
"""As in lightly's examples for CIFAR-10, of which only SimCLR's has a weaker colour jitter besides."""


def _lightly() -> Any:
    """The imported package `lightly`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lightly.loss
        import lightly.models.modules
        import lightly.models.utils
        import lightly.transforms
        import lightly.transforms.byol_transform
    except ModuleNotFoundError as error:
        missing = (error.name or "lightly").partition(".")[0]
        raise UserError(
            f"the package {missing} is missing, which the rivals are made of: pip install -r requirements-rivals.txt"
        ) from None
    return lightly


def resnet18() -> nn.Module:
    """torchvision's ResNet18 with a 3x3 stem of stride 1 and no max-pooling: (B, 3, S, S) -> (B, 512)."""
    import torchvision

    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    network.width = network.fc.in_features
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return network


class WhiteNetBackbone(nn.Module):
    """The project's whitenet without its last layer: (B, 3, S, S) -> (B, 1536).

    Args:
        sample: (n, 3, S, S) training images that its first layer is fitted to.
    """

    def __init__(self, sample: Tensor):
        super().__init__()
        self.network = WhiteNet(128, small_stem=True)
        self.network.fit_stem(sample)
        self.width = self.network.fc.in_features
        self.network.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.network.stage_outputs(images)
        return self.network.pooled(maps["layer1"], maps["layer2"])


class Rival(nn.Module):
    """Base class of the methods: a backbone with heads, and momentum copies where a method has them.

    Args:
        backbone: (B, 3, S, S) -> (B, d), with `width` d.
        transform: a PIL image -> V views (3, S, S).
        heads: applied one after the other behind the backbone.

    Attributes:
        dtype: of autocast, None for float32.
    """

    def __init__(self, backbone: nn.Module, transform: Any, *heads: nn.Module):
        super().__init__()
        self.transform, self.backbone, self.heads = transform, backbone, nn.ModuleList(heads)
        self.dtype: Optional[torch.dtype] = None

    def through(self, batch: Tensor, *parts: nn.Module) -> Tensor:
        """Apply networks one after the other. The result is float32, and so is the loss."""
        batch = batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype is not None):
            for part in parts:
                batch = part(batch)
        return batch.float()

    def features(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, d)."""
        return self.through(batch, self.backbone)

    def loss(self, views: list[Tensor]) -> Tensor:
        """The loss of V views (B, 3, S, S) of the same images."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Called before each step with the used share of the budget."""


class SimCLR(Rival):
    """Chen et al. 2020."""

    def __init__(self, lightly: Any, backbone: nn.Module, **view: Any):
        head = lightly.models.modules.SimCLRProjectionHead(backbone.width, HIDDEN, 128)
        super().__init__(backbone, lightly.transforms.SimCLRTransform(cj_strength=0.5, **SMALL, **view), head)
        self._loss = lightly.loss.NTXentLoss()

    def loss(self, views: list[Tensor]) -> Tensor:
        return self._loss(*(self.through(view, self.backbone, *self.heads) for view in views))


class _WithMomentum(Rival):
    """A method whose targets come from averaged weights: momentum from 0.99 to 1 along half a cosine."""

    def __init__(self, lightly: Any, backbone: nn.Module, transform: Any, *heads: nn.Module):
        super().__init__(backbone, transform, *heads)
        self._lightly = lightly
        self.average = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.heads[0])])
        lightly.models.utils.deactivate_requires_grad(self.average)

    def before_step(self, progress: float) -> None:
        momentum = 1 - 0.01 * (math.cos(math.pi * progress) + 1) / 2
        for own, average in zip((self.backbone, self.heads[0]), self.average):
            self._lightly.models.utils.update_momentum(own, average, momentum)

    @torch.no_grad()
    def targets(self, view: Tensor) -> Tensor:
        return self.through(view, *self.average)


class BYOL(_WithMomentum):
    """Grill et al. 2020."""

    def __init__(self, lightly: Any, backbone: nn.Module, **view: Any):
        modules, byol = lightly.models.modules, lightly.transforms.byol_transform
        transform = byol.BYOLTransform(
            byol.BYOLView1Transform(**SMALL, **view), byol.BYOLView2Transform(**SMALL, **view)
        )
        heads = modules.BYOLProjectionHead(backbone.width, 1024, 256), modules.BYOLPredictionHead(256, 1024, 256)
        super().__init__(lightly, backbone, transform, *heads)
        self._loss = lightly.loss.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor]) -> Tensor:
        targets = [self.targets(view) for view in views]
        predictions = [self.through(view, self.backbone, *self.heads) for view in views]
        return (self._loss(predictions[0], targets[1]) + self._loss(predictions[1], targets[0])) / 2


class MoCo(_WithMomentum):
    """MoCo v2 (Chen et al. 2020) with a queue of 4,096 keys and a symmetric loss."""

    def __init__(self, lightly: Any, backbone: nn.Module, **view: Any):
        transform = lightly.transforms.MoCoV2Transform(**SMALL, **view)
        head = lightly.models.modules.MoCoProjectionHead(backbone.width, HIDDEN, 128)
        super().__init__(lightly, backbone, transform, head)
        self._loss = lightly.loss.NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def loss(self, views: list[Tensor]) -> Tensor:
        keys = [self.targets(view) for view in views]
        queries = [self.through(view, self.backbone, self.heads[0]) for view in views]
        return (self._loss(queries[0], keys[1]) + self._loss(queries[1], keys[0])) / 2


class FastSiam(Rival):
    """Pototzky et al. 2022: four views, each of which predicts the mean of the others."""

    def __init__(self, lightly: Any, backbone: nn.Module, **view: Any):
        modules = lightly.models.modules
        heads = modules.SimSiamProjectionHead(backbone.width, HIDDEN, 128), modules.SimSiamPredictionHead(128, 64, 128)
        super().__init__(backbone, lightly.transforms.FastSiamTransform(**SMALL, **view), *heads)
        self._loss = lightly.loss.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor]) -> Tensor:
        projections = [self.through(view, self.backbone, self.heads[0]) for view in views]
        predictions = [self.through(each, self.heads[1]) for each in projections]
        fixed = torch.stack([each.detach() for each in projections])
        total, others = fixed.sum(dim=0), len(views) - 1
        return sum(self._loss(p, (total - z) / others) for p, z in zip(predictions, fixed)) / len(views)


_CLASSES = {"simclr": SimCLR, "byol": BYOL, "moco": MoCo, "fastsiam": FastSiam}


def train(
    method: str, images: Images, seconds: Optional[float], views: Optional[float], rate: float, seed: int
) -> dict[str, Any]:
    """Train until the budget is used up and evaluate the backbone's features.

    Args:
        images: the training images; half of the views are mirrored if the options say so.
        seconds: processor seconds of this process in training, transforms included; None: no limit.
        views: augmented views of an image; None: no limit.
        rate: learning rate at the start.

    Raises:
        UserError: lightly is missing, or there is no budget.
    """
    if seconds is None and views is None:
        raise UserError("the rivals need --seconds or --views")
    lightly, options, pipeline = _lightly(), images.options, images.pipeline
    torch.manual_seed(seed)
    normalise = {"mean": list(pipeline.means), "std": list(pipeline.stds)}
    flip = 0.5 if options.random_horizontal_flip else 0.0
    kind, _, network = method.partition("-")
    backbone = WhiteNetBackbone(images_to_fit(pipeline, options.size)) if network else resnet18()
    rival = _CLASSES[kind](lightly, backbone, input_size=options.size, hf_prob=flip, normalize=normalise)
    rival.to(memory_format=torch.channels_last)
    rival.dtype = choose_precision(options.precision if network else "auto", CPU)
    trained = [weight for weight in rival.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=5e-4)
    pictures = [Image.fromarray(np.asarray(pixels)) for pixels in pipeline.train.pixels]
    batch, began, steps, seen, order = min(BATCH, len(pictures)), time.process_time(), 0, 0, []
    while True:
        spent = time.process_time() - began
        progress = max(spent / (seconds or math.inf), seen / len(pictures) / (views or math.inf))
        if progress >= 1:
            break
        if len(order) < batch:
            order = torch.randperm(len(pictures)).tolist()
        rows, order = order[:batch], order[batch:]
        batches = [torch.stack(each) for each in zip(*(rival.transform(pictures[row]) for row in rows))]
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        rival.before_step(progress)
        loss = rival.loss(batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps, seen = steps + 1, seen + batch * len(batches)
    rival.eval()
    accuracies = {"backbone": images.accuracies(rival.features)}
    return {"accuracies": accuracies, "train_seconds": spent, "views_done": seen / len(pictures), "steps": steps}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.rivals", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", nargs="+", default=["cifar-small"], help="of benchmarks/images")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seconds", nargs="+", type=float, default=[], help="budgets: processor seconds of training")
    parser.add_argument("--views", nargs="+", type=float, default=[], help="budgets: views of an image")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    runs.add_arguments(parser, "rivals")
    given = parser.parse_args()
    _lightly()
    budgets = [(seconds, None) for seconds in given.seconds] + [(None, views) for views in given.views]
    if not budgets:
        parser.error("give a budget: --seconds or --views")
    cells = [
        Cell(data, method, seconds, views, seed, rate)
        for seed in range(given.seeds)
        for data in given.scale
        for seconds, views in budgets
        for method in given.methods
        for rate in given.rates
    ]
    return runs.work(given, lambda store: cells, "SimCLR, BYOL, MoCo v2 and FastSiam by lightly")


if __name__ == "__main__":
    runs.exit_with(main)
