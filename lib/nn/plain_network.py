"""A network as it was built, without what only training needs."""

import copy

from torch import nn

from lib.nn.sync_batch_norm import without_synchronisation
from lib.nn.winograd_layers import without_winograd


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy of the same weights, of PyTorch's own layers only: for evaluation and for files."""
    return without_winograd(without_synchronisation(copy.deepcopy(network)))
