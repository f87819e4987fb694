"""Checkpoints as the authors' released code writes them, made by hand: names, nesting, and Python 2's pickles."""

import io
import pickle
import struct
import types
from collections import OrderedDict
from typing import ClassVar

import torch


def authors_name(name, prefix):
    """The name of our weight in the authors' ResNet."""
    return prefix + name.replace(".downsample.", ".shortcut.").replace("fc.", "linear.", 1 if name[:3] == "fc." else 0)


def authors_checkpoint(net, memory, prefix="module.", flat=False):
    """A checkpoint with the released code's keys, which lack num_batches_tracked; `flat`: npc.memory is one key."""
    weights = OrderedDict(
        (authors_name(name, prefix), value) for name, value in net.items() if not name.endswith("num_batches_tracked")
    )
    npc = OrderedDict(params=torch.tensor([0.07, 0.5]), memory=memory)
    state = {
        "net": weights,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.03, "params": [0]}]},
        "acc": 86.25,
        "epoch": 199,
        "round": 3,
        "session": "20190501-120000",
    }
    anchors = {"anchor_indexes": torch.arange(3), "neighbours": torch.zeros(3, 1, dtype=torch.int64)}
    if flat:
        state.update({f"npc.{name}": value for name, value in npc.items()})
        state.update({f"ANs_discovery.{name}": value for name, value in anchors.items()})
    else:
        state.update(npc=npc, ANs_discovery=anchors)
    return state


def save_as_python_2(state, path):
    """Write the old format of torch.save, with strings as Python 2 pickles them: bytes without an encoding."""
    module = types.ModuleType("python_2_pickle")
    module.Pickler = _Python2Pickler
    module.dump = lambda value, file, protocol: _Python2Pickler(file, protocol).dump(value)
    torch.save(state, path, pickle_module=module, pickle_protocol=2, _use_new_zipfile_serialization=False)


class _Python2Pickler(pickle._Pickler):
    """Writes strings with SHORT_BINSTRING, an opcode that Python 3 reads but never writes."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_str(self, text):
        encoded = text.encode("latin-1")
        assert len(encoded) < 256
        self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(encoded)) + encoded)
        self.memoize(text)

    dispatch[str] = save_str


def python_2_texts(text):
    """The pickled bytes of one string, for a test of the pickler above."""
    file = io.BytesIO()
    _Python2Pickler(file, 2).dump(text)
    return file.getvalue()
