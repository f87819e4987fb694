"""Checkpoints made by hand, some malicious."""

import os

import torch

from lib import compat
from lib.checkpoint import io as checkpoint


def complete(**changes):
    state = {
        "net": {"weight": torch.arange(3.0)}, "optimizer": {}, "npc": {"memory": torch.ones(2, 2)},
        "ANs_discovery": {}, "epoch": 1, "round": 0, "options": {"scale": [0.2, 1.0], "data_root": None}, "format": 1,
    }  # fmt: skip
    return {**state, **changes}


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def restricted_load(path, monkeypatch):
    monkeypatch.setattr(compat, "HAS_WEIGHTS_ONLY", False)
    keywords = {} if compat.TORCH_RELEASE < (1, 13) else {"weights_only": False}
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: original(*a, **{**k, **keywords}))
    return checkpoint.load(path)
