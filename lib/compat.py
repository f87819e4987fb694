"""What differs between the PyTorch releases this project runs on, 1.10 to today's. Nothing else belongs here."""

import pickle
import types
from typing import Any

import torch


def _release(version: str) -> tuple:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


TORCH_RELEASE = _release(torch.__version__)
"""(major, minor) of the PyTorch that is running."""

HAS_WEIGHTS_ONLY = TORCH_RELEASE >= (1, 13)


def load_data_only(path: str) -> Any:
    """Load a file written by `torch.save`, on the CPU, without executing anything it contains.

    Tensors, numbers, strings and the usual containers are read; any other object is refused.

    Raises:
        pickle.UnpicklingError: the file asks for something other than data.
        Exception: whatever torch raises for a file that is damaged or is no checkpoint.
    """
    if HAS_WEIGHTS_ONLY:
        return torch.load(path, map_location="cpu", weights_only=True)
    restricted = types.ModuleType("restricted_pickle")
    restricted.Unpickler = _DataUnpickler
    restricted.load = lambda file, **kwargs: _DataUnpickler(file, **kwargs).load()
    return torch.load(path, map_location="cpu", pickle_module=restricted)


_STORAGES = {
    f"{kind}Storage" for kind in ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16")
}


class _DataUnpickler(pickle.Unpickler):
    """Resolves the few names a state dict needs, and nothing that could run code (torch before 1.13)."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return super().find_class(module, name)
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return super().find_class(module, name)
        if module == "torch" and (name in _STORAGES or name in ("Size", "device")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the file contains {module}.{name}, which is not plain data")
