"""ZCA whitening against NumPy's singular values in float64."""

import numpy as np
import pytest
import torch

from lib.distributed.world import World
from lib.evaluation.features import SHRINK, Whitening
from tests.helpers.rows import unit_rows


def by_singular_values(train, rows):
    """Whitened rows (n, D) from the singular value decomposition of the centred training rows."""
    train, rows = train.double().numpy(), rows.double().numpy()
    mean = train.mean(axis=0)
    _, values, directions = np.linalg.svd(train - mean, full_matrices=False)
    rank = (values > 1e-9 * values.max()).sum()  # of n centred rows at most n - 1
    values, directions = values[:rank], directions[:rank]
    whitened = (rows - mean) @ directions.T / (values + SHRINK * values.max()) @ directions
    return whitened / np.linalg.norm(whitened, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [200, 24, 9, 2])
def test_rows_are_whitened_as_by_singular_values(count, monkeypatch):
    """For more rows than dimensions, as many, and fewer."""
    monkeypatch.setattr("lib.evaluation.features._PART", 50)
    scales = torch.logspace(-2, 1, 24)
    train, others = torch.randn(count, 24, generator=torch.Generator().manual_seed(1)) * scales + 3, unit_rows(7, 24, 2)
    whiten = Whitening.fit(train, World.alone())
    for rows in (train, others):
        np.testing.assert_allclose(whiten(rows).numpy(), by_singular_values(train, rows), atol=2e-4)


def test_directions_without_training_variance_are_left_out():
    """Training rows lie in a plane of 40 dimensions; new rows leave it a little, as pictures decoded otherwise do."""
    generator = torch.Generator().manual_seed(0)
    train = torch.zeros(30, 40)
    train[:, :2] = torch.randn(30, 2, generator=generator)
    whiten = Whitening.fit(train, World.alone())
    left = train + 0.02 * torch.randn(30, 40, generator=generator)
    cosines = (whiten(left) * whiten(train)).sum(dim=1)
    assert cosines.mean() > 0.999  # 0.5 where the other 38 directions are multiplied by 1 / SHRINK


def test_whitening_equalises_large_directions():
    """One direction has a hundred times the spread of the others; whitened, they differ only by the shrinkage."""
    train = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1, 1, 1, 1])
    whiten = Whitening.fit(train, World.alone())
    spread = ((train - whiten.mean) @ whiten.matrix).std(dim=0)
    assert spread[0] / spread[1] == pytest.approx((1 / (1 + SHRINK)) / (0.01 / (0.01 + SHRINK)), rel=0.05)


def test_doubles_and_equal_rows_stay_finite():
    train = unit_rows(1, 8, 0).repeat(20, 1)
    assert torch.isfinite(Whitening.fit(train, World.alone())(unit_rows(3, 8, 1))).all()
    twice = unit_rows(4, 8, 0).repeat(5, 1)
    whitened = Whitening.fit(twice, World.alone())(twice)
    torch.testing.assert_close(whitened[:4], whitened[4:8])
    torch.testing.assert_close(whitened.norm(dim=1), torch.ones(20))


def test_whitening_does_not_depend_on_scale():
    train, rows = unit_rows(50, 6, 0), unit_rows(5, 6, 1)
    expected = Whitening.fit(train, World.alone())(rows)
    for size in (1e-12, 1e12):
        torch.testing.assert_close(Whitening.fit(train * size, World.alone())(rows * size), expected, atol=1e-5, rtol=0)
