"""The device, repeats and random data of the timed cases."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import take_turns
from lib.config import Options
from lib.runtime.determinism import choose_algorithms
from lib.runtime.memory import keep_freed_memory


def as_in_a_run(device: torch.device) -> None:
    """Set PyTorch and the C library as `main.py` does with its default options, for this process."""
    options = Options()
    choose_algorithms(options.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = options.tf32
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs are captured on the current device
    keep_freed_memory()


@dataclass(frozen=True)
class Setting:
    """The device, how often each contender runs, and the sizes of the paper's CIFAR-10."""

    device: torch.device
    repeats: int
    images: int = 50_000
    test_images: int = 10_000
    batch: int = 128
    dim: int = 128

    @property
    def steps(self) -> int:
        """Training steps in a turn: many on a GPU, since it idles at the start and end of a turn."""
        return 200 if self.device.type == "cuda" else 2

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def unit_rows(self, count: int, seed: int = 0) -> Tensor:
        rows = torch.randn(count, self.dim, generator=torch.Generator().manual_seed(seed))
        return F.normalize(rows, dim=1).to(self.device)

    def pixels(self, count: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)

    def pairs(self, images: int) -> Tensor:
        """(images, 2) rows: an image and one neighbour, drawn at random."""
        return torch.randint(images, (images, 2), generator=torch.Generator().manual_seed(3)).to(self.device)

    def turns(self, contenders: dict[str, Callable[[], object]], repeats: int = 0) -> dict[str, float]:
        return take_turns(contenders, repeats or self.repeats, self.synchronise)
