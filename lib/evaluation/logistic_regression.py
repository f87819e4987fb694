"""Multinomial logistic regression with an L2 penalty, by L-BFGS over all rows at once."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from lib.distributed.world import World

BLOCK_ELEMENTS = 2**24
"""Numbers in a block of rows, or in its scores, that are looked at together."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of row x are x weights + bias; the highest wins. On the CPU.

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


def fit(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    world: World,
    start: Optional[Classifier] = None,
    steps: int = 100,
    taking_part: Optional[Tensor] = None,
) -> Classifier:
    """Minimises the mean cross-entropy + penalty / 2 ||weights||^2; the bias is free.

    scikit-learn's LogisticRegression(C = 1 / (n penalty)) minimises the same. A function of its arguments: nothing is
    random in it. With several processes each brings its rows, and all take the same steps.

    Args:
        rows: (n, d) float32, on `world.device` or on the CPU, from where it goes there in blocks.
        labels: (n,) int64 in [0, C), where the rows are.
        classes: C.
        penalty: above 0.
        world: the processes of the run.
        start: the classifier to start from; None: all zero.
        steps: L-BFGS iterations at most.
        taking_part: (n,) bool, which rows count, where the rows are; None: all. At least one must in all processes
            together.
    """
    dim, device = rows.shape[1], world.device
    if taking_part is None:
        taking_part = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    count = sum(world.counts(int(taking_part.sum())))
    at_once = max(1, BLOCK_ELEMENTS // max(dim, classes))

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[: dim * classes].reshape(dim, classes), point[dim * classes :]
        # one float64 vector, so that one exchange adds up loss and gradient
        total = torch.zeros(1 + point.size, dtype=torch.float64, device=device)
        on_device = _on(device, weights, bias)
        for parts in zip(rows.split(at_once), labels.split(at_once), taking_part.split(at_once)):
            _add_block(total, *(part.to(device) for part in parts), *on_device)
        total = (world.all_reduce_sum(total) / count).cpu().numpy()
        value = total[0] + 0.5 * penalty * float((weights**2).sum())
        gradient = total[1:]
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


def _add_block(total: Tensor, rows: Tensor, labels: Tensor, taking_part: Tensor, weights: Tensor, bias: Tensor) -> None:
    """Adds the cross-entropy of rows (b, d), and its gradient by weights (d, C) and bias (C,), to a flat vector."""
    if not len(rows):
        return
    log_shares = torch.log_softmax(torch.addmm(bias, rows, weights), dim=1)  # (b, C)
    total[0] -= log_shares.gather(1, labels[:, None])[taking_part].double().sum()
    excess = log_shares.exp_()
    excess[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    excess *= taking_part[:, None]
    total[1 : 1 + weights.numel()] += (rows.t() @ excess).double().flatten()
    total[1 + weights.numel() :] += excess.double().sum(dim=0)


def _on(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32) for array in arrays)
