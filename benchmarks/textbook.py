"""The plain versions: float32, images through PIL one by one, softmax first and its logarithm after, loops."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def loss(features: Tensor, memory: Tensor, members: Tensor, temperature: float) -> Tensor:
    """Equations 2, 3 and 7 as they are written: all probabilities, then those of the set, then the logarithm."""
    p = torch.softmax(features @ memory.t() / temperature, dim=1)
    return -torch.log(p.gather(1, members).sum(dim=1)).mean()


def update_bank(memory: Tensor, indices: Tensor, features: Tensor, momentum: float) -> None:
    """Equation 8."""
    memory[indices] = F.normalize(momentum * memory[indices] + (1 - momentum) * features, dim=1)


def discovery(memory: Tensor, temperature: float, k: int, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """Equations 5 and 1 in two passes over the images, a block of rows at a time."""
    entropies, neighbours = [], []
    for block in memory.split(rows):
        p = torch.softmax(block @ memory.t() / temperature, dim=1)
        entropies.append(-(p * torch.log(p + 1e-30)).sum(dim=1))
    for block in memory.split(rows):
        neighbours.append((block @ memory.t()).topk(k + 1, dim=1).indices[:, 1:])
    return torch.cat(entropies), torch.cat(neighbours)


def knn(queries: Tensor, database: Tensor, labels: Tensor, classes: int, k: int, sigma: float) -> Tensor:
    """The weighted vote, by batches of 100 queries, with one-hot labels."""
    predictions = []
    for block in queries.split(100):
        similarity, index = (block @ database.t()).topk(k, dim=1)
        one_hot = F.one_hot(labels[index], classes).float()  # (Q, K, C)
        predictions.append((one_hot * (similarity / sigma).exp()[:, :, None]).sum(dim=1).argmax(dim=1))
    return torch.cat(predictions)


def step(network: nn.Module, optimizer, images: Tensor, indices: Tensor, memory: Tensor, members: Tensor) -> float:
    """One training step; the loss is read out each time, as a progress display would."""
    features = network(images)
    value = loss(features, memory, members, 0.1)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    update_bank(memory, indices, features.detach(), 0.5)
    return value.item()
