"""Which files may be handed to torch.load, and a pickle reader that knows data only.

torch.load takes more than what torch.save writes today: TorchScript archives, which contain code; tar files and bare
pickles of old releases; compressed archives, which may unpack to any size. None of these is ours and none is opened.
"""

import pickle
import tarfile
import zipfile
from typing import Any, ClassVar

import torch

_PARTS = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
_STORAGES = {
    f"{kind}Storage" for kind in ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16")
}
_CALLED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
}


def not_data(name: str) -> str:
    """What is said of a name that a file mentions and should not."""
    return f"the file contains {name}, which is not plain data"


_OLD_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""How files of torch.save's begin that were written before PyTorch 1.6, and by Python 2: bare pickles and numbers."""


def is_of_old_release(path: str) -> bool:
    """Whether a file is one of torch.save's before PyTorch 1.6; a tar file, which came before these, is not."""
    with open(path, "rb") as file:
        if file.read(len(_OLD_START)) != _OLD_START:
            return False
    try:  # a tar file begins with the name of its first file, which may look like that
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return True
    return False


def check_archive(path: str) -> None:
    """Whether a file is an archive of torch.save's, and nothing else.

    Raises:
        pickle.UnpicklingError: it is something else, or has something else in it.
        zipfile.BadZipFile, OSError: it is damaged or cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise pickle.UnpicklingError("the file is no zip archive, which torch.save writes")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    folder = names[0].partition("/")[0] + "/" if names else ""
    if f"{folder}data.pkl" not in names or len(set(names)) < len(names):
        raise pickle.UnpicklingError("the archive is not one of torch.save's")
    for entry in entries:
        part = entry.filename[len(folder) :]
        if not entry.filename.startswith(folder) or not (part in _PARTS or _is_storage(part)):
            raise pickle.UnpicklingError(f"the archive contains {entry.filename!r}, which is not plain data")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise pickle.UnpicklingError(f"the archive's {entry.filename!r} is compressed, which torch.save never does")


def _is_storage(part: str) -> bool:
    folder, _, number = part.partition("/")
    return folder == "data" and number.isdecimal()


class DataUnpickler(pickle._Unpickler):
    """Reads numbers, texts, containers and tensors; knows a few names, and nothing that could run code.

    The reader in Python, because that in C cannot be told what an instruction may do: here objects are made by the
    functions of the list alone, and only an OrderedDict may be given attributes. Tensors' numbers are no part of the
    pickle, so it is fast enough.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLED and not (module == "torch" and name in _STORAGES):
            raise pickle.UnpicklingError(not_data(f"{module}.{name}"))
        found = getattr(torch, name) if module == "torch" else super().find_class(module, name)
        return _Name(found, (module, name) in _CALLED)

    def persistent_load(self, identity: Any) -> Any:
        """torch.load puts its own in this place; storages are asked for by their class."""
        raise pickle.UnpicklingError("a storage outside an archive")

    def load_reduce(self) -> None:
        """A function and its arguments become what it returns."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Name) or not function.may_be_called or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("the file calls something that is not plain data")
        self.stack[-1] = function.meant(*arguments)

    def load_build(self) -> None:
        """Attributes for an object: PyTorch's state dicts have some, which are of no use to us."""
        state = self.stack.pop()
        if type(self.stack[-1]).__name__ != "OrderedDict" or not isinstance(state, dict):
            raise pickle.UnpicklingError("the file sets attributes of something that is not plain data")

    def load_binpersid(self) -> None:
        """What torch.load makes of a storage's description, in which a class is wanted as it is."""
        identity = self.stack.pop()
        if not isinstance(identity, tuple):
            raise pickle.UnpicklingError("a storage is described by something that is not plain data")
        plain = tuple(part.meant if isinstance(part, _Name) else part for part in identity)
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
    """A name that the file mentions. Not the thing itself, which other instructions might do something to."""

    def __init__(self, meant: Any, may_be_called: bool):
        self.meant, self.may_be_called = meant, may_be_called
