"""Random rows for tests of the method."""

import numpy as np
import torch
from torch.nn import functional as F

from lib.method.objective import ABSENT


def unit_rows(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def grid_rows(count, dim, seed):
    """Rows of small integers: products are exact in float32, with many ties."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (count, dim))).float()


def random_members(batch, size, k, seed):
    generator = torch.Generator().manual_seed(seed)
    members = torch.stack([torch.randperm(size, generator=generator)[: 1 + k] for _ in range(batch)])
    instances = torch.rand(batch, generator=generator) < 0.5
    members[instances, 1:] = ABSENT
    return members
