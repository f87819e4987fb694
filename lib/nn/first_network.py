"""The network that the options describe, with its first weights."""

import torch
from torch import nn

import models
from lib.config import Options
from lib.seeding import derive


def first_network(options: Options) -> nn.Module:
    """A function of the options, `--seed` among them. Sets PyTorch's default generator."""
    torch.manual_seed(derive(options.seed, "network"))
    return models.build(options.network, options.low_dim, options.stem, options.size, options.init)
