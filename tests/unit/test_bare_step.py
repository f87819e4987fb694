"""The step that the benchmarks take for the limit."""

import torch
from torch import nn

from benchmarks.bare_step import BareStep
from lib.nn.embedder import Embedder


def test_it_follows_the_gradient_it_is_given():
    network = nn.Linear(3, 2, bias=False)
    before = network.weight.detach().clone()
    images, upstream = torch.randn(4, 3), torch.randn(4, 2)
    embedder = Embedder(network, torch.device("cpu"))
    step = BareStep(embedder, torch.optim.SGD(network.parameters(), lr=0.1))
    for number in (1, 2):
        assert step(images, upstream, 4).shape == ()
        torch.testing.assert_close(network.weight.detach(), before - 0.1 * number * upstream.t() @ images)
