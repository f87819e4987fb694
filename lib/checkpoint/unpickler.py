"""An unpickler for plain data, for PyTorch before 1.13, which has no `weights_only`; and a test for files of PyTorch
before 1.6."""

import pickle
import tarfile
from typing import Any, Callable, ClassVar

import torch

_STORAGES = {
    f"{kind}Storage" for kind in ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16")
}
_CALLABLE = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
}


def not_data(name: str) -> str:
    """The message about a pickle that names something other than plain data."""
    return f"the file contains {name}, which is not plain data"


_OLD_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""The first bytes of a file that torch.save wrote before PyTorch 1.6."""


def is_of_old_release(path: str) -> bool:
    """Whether torch.save of a PyTorch before 1.6 wrote the file; not the tar files of even older releases."""
    with open(path, "rb") as file:
        if file.read(len(_OLD_START)) != _OLD_START:
            return False
    try:  # a tar file begins with the name of its first file, which may look like that
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return True
    return False


class DataUnpickler(pickle._Unpickler):
    """Unpickles numbers, texts, containers and tensors; a pickle can call only the functions of `_CALLABLE`.

    It derives from pickle's Python reader, since the handlers of instructions cannot be replaced in the one in C. Only
    an OrderedDict may be given attributes. The numbers of tensors are not in the pickle, so it is fast enough.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # pickle._Unpickler.load sets this and the next
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLABLE and not (module == "torch" and name in _STORAGES):
            raise pickle.UnpicklingError(not_data(f"{module}.{name}"))
        found = getattr(torch, name) if module == "torch" else super().find_class(module, name)
        return _Name(found, (module, name) in _CALLABLE)

    def persistent_load(self, identity: Any) -> Any:
        """torch.load replaces it by its own, which finds storages by their class."""
        raise pickle.UnpicklingError("a storage outside an archive")

    def load_reduce(self) -> None:
        """Call a function with its arguments."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Name) or not function.may_be_called or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("the file calls something that is not plain data")
        self.stack[-1] = function.target(*arguments)

    def load_build(self) -> None:
        """Discard the attributes of an object; PyTorch's state dicts have some."""
        state = self.stack.pop()
        if type(self.stack[-1]).__name__ != "OrderedDict" or not isinstance(state, dict):
            raise pickle.UnpicklingError("the file sets attributes of something that is not plain data")

    def load_binpersid(self) -> None:
        """Let torch.load find a storage by its description, which holds a class."""
        identity = self.stack.pop()
        if not isinstance(identity, tuple):
            raise pickle.UnpicklingError("a storage is described by something that is not plain data")
        plain = tuple(part.target if isinstance(part, _Name) else part for part in identity)
        self.append(self.persistent_load(plain))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("the file makes objects that are not plain data")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    for _code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                  pickle.PERSID):  # fmt: skip
        dispatch[_code[0]] = _refuse


class _Name:
    """A global name in the pickle, wrapped so that other instructions cannot act on the object itself."""

    def __init__(self, target: Any, may_be_called: bool):
        self.target, self.may_be_called = target, may_be_called
