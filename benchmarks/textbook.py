"""The textbook versions: float32, PIL images one by one, the logarithm of a softmax, loops.

The functions at the end take a Setting and return the function to be timed.
"""

from typing import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import models
from benchmarks.setting import Setting
from datasets.transforms.pil import train_transform
from lib.config import Options

MEANS, STDS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WORKERS = 2


class Pictures(Dataset):
    """Images (N, H, W, 3) uint8 and a transform from PIL to a tensor; gives an image and its number."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], Tensor]):
        self._pixels, self._transform = pixels, transform

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), index


def loss(features: Tensor, memory: Tensor, members: Tensor, temperature: float) -> Tensor:
    """Equations 2, 3 and 7 as they are written: all probabilities, then those of the set, then the logarithm."""
    p = torch.softmax(features @ memory.t() / temperature, dim=1)
    return -torch.log(p.gather(1, members).sum(dim=1)).mean()


def update_bank(memory: Tensor, indices: Tensor, features: Tensor, momentum: float) -> None:
    """Equation 8."""
    memory[indices] = F.normalize(momentum * memory[indices] + (1 - momentum) * features, dim=1)


def entropies_and_neighbours(memory: Tensor, temperature: float, k: int, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """Equations 5 and 1 in two passes over the images, a block of rows at a time."""
    entropies, neighbours = [], []
    for block in memory.split(rows):
        p = torch.softmax(block @ memory.t() / temperature, dim=1)
        entropies.append(-(p * torch.log(p + 1e-30)).sum(dim=1))
    for block in memory.split(rows):
        neighbours.append((block @ memory.t()).topk(k + 1, dim=1).indices[:, 1:])
    return torch.cat(entropies), torch.cat(neighbours)


def vote(queries: Tensor, database: Tensor, labels: Tensor, classes: int, k: int, sigma: float) -> Tensor:
    """The weighted vote, by batches of 100 queries, with one-hot labels."""
    predictions = []
    for block in queries.split(100):
        similarity, index = (block @ database.t()).topk(k, dim=1)
        one_hot = F.one_hot(labels[index], classes).float()  # (Q, K, C)
        predictions.append((one_hot * (similarity / sigma).exp()[:, :, None]).sum(dim=1).argmax(dim=1))
    return torch.cat(predictions)


def learn(network: nn.Module, optimizer, images: Tensor, indices: Tensor, memory: Tensor, members: Tensor) -> float:
    """One training step, which returns the loss as a number, as a progress display needs it."""
    features = network(images)
    value = loss(features, memory, members, 0.1)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    update_bank(memory, indices, features.detach(), 0.5)
    return value.item()


def head(setting: Setting) -> Callable[[], object]:
    memory, members = setting.unit_rows(setting.images), setting.pairs(setting.images)[: setting.batch]
    features = setting.unit_rows(setting.batch, 1).requires_grad_()
    return lambda: loss(features, memory, members, 0.1).backward()


def augmentation(setting: Setting) -> Callable[[], object]:
    torch.set_num_threads(1)
    loader = DataLoader(Pictures(setting.pixels(setting.batch), _train_transform()), setting.batch)
    return lambda: list(loader)


def step(setting: Setting) -> Callable[[], object]:
    network = models.build("resnet18", setting.dim, "small", 32).to(setting.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
    memory, pairs = setting.unit_rows(setting.images), setting.pairs(setting.images)
    loader = _loader(setting, setting.pixels(setting.steps * setting.batch), _train_transform(), setting.batch)

    def contender() -> None:
        for images, indices in loader:
            images, indices = (each.to(setting.device, non_blocking=True) for each in (images, indices))
            learn(network, optimizer, images, indices, memory, pairs[indices])

    return contender


def discovery(setting: Setting) -> Callable[[], object]:
    memory = setting.unit_rows(setting.images)
    return lambda: entropies_and_neighbours(memory, 0.1, 1)


def forwards(setting: Setting) -> Callable[[], object]:
    """Forwards of a tenth of the test images."""
    network = models.build("resnet18", setting.dim, "small", 32).to(setting.device).eval()
    part = setting.test_images // 10
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(MEANS, STDS)]
    loader = _loader(setting, setting.pixels(part), transforms.Compose(steps), 100)

    @torch.no_grad()
    def contender() -> None:
        for images, _ in loader:
            network(images.to(setting.device, non_blocking=True))

    return contender


def knn(setting: Setting) -> Callable[[], object]:
    database, queries = setting.unit_rows(setting.images), setting.unit_rows(setting.test_images, 1)
    labels = torch.randint(10, (setting.images,), device=setting.device)
    return lambda: vote(queries, database, labels, 10, 200, 0.1)


def _loader(setting: Setting, pixels: np.ndarray, transform: Callable[[Image.Image], Tensor], batch: int) -> DataLoader:
    on_gpu = setting.device.type == "cuda"
    return DataLoader(
        Pictures(pixels, transform), batch, num_workers=WORKERS, pin_memory=on_gpu, persistent_workers=True
    )


def _train_transform():
    options = Options()
    return train_transform(
        32, options.scale, options.ratio, options.colorjitter, options.random_grayscale, False, MEANS, STDS
    )
