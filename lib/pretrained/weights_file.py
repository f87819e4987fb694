"""Files of weights: a checkpoint of this project or of the authors' code, or a state dict. None can execute code."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from lib.checkpoint import io as checkpoint
from lib.checkpoint.io import REQUIRED, check_layout
from lib.config.registry import Statistics
from lib.errors import UserError

DESCRIPTION = ("network", "low_dim", "stem", "size", "resize")
"""Options that describe the network and its input."""

NETWORK_STATE, NETWORK_JSON = "network.pt", "network.json"
"""Names of the files that --export writes."""

_NETS = ("net", "state_dict", "model")  # where others put the state dict
_PREFIXES = ("module.", "_orig_mod.")  # of nn.DataParallel and torch.compile
_OF_OURS = frozenset(REQUIRED)
_UNUSED = ("optimizer", "ANs_discovery")  # of a run that is not resumed


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A network's weights and the metadata of their file.

    Attributes:
        name: of the file, for messages.
        kind: of the file, in words.
        weights: the state dict, without the prefixes of wrappers such as DataParallel.
        memory: (N, D) memory bank, or None.
        options: those of `DESCRIPTION` that the file has.
        statistics: channel means and stds for normalising images, or None.
        fingerprint: of the training images that the rows of the bank belong to, or None.
        unused: what else the file holds, in words.
        about: its origin: those of session, round, epoch and data set that the file has.
        contents: of some of the training images, see `ImageSet.contents`; or None.
        clusters: of the rows of the bank, as a checkpoint at the end of a round keeps them; or None.
        shrink: the option of that name, if the file has it.
    """

    name: str
    kind: str
    weights: dict[str, Tensor]
    memory: Optional[Tensor] = None
    options: dict[str, Any] = field(default_factory=dict)
    statistics: Optional[Statistics] = None
    fingerprint: Optional[str] = None
    unused: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    shrink: Optional[int] = None
    contents: Optional[list[int]] = None
    clusters: Optional[Mapping[str, Any]] = None

    def layer(self, with_statistics: bool) -> dict[str, Any]:
        """The options of the file, a layer between the defaults and the config files.

        Args:
            with_statistics: whether to add means and stds.
        """
        if not with_statistics or self.statistics is None:
            return dict(self.options)
        means, stds = self.statistics
        return {**self.options, "means": list(means), "stds": list(stds)}


def read(path: Path) -> WeightsFile:
    """Read a checkpoint of this project, one of the authors' released code, or a plain state dict.

    The authors' checkpoint has the network under `net` and the bank as `memory` under `npc`, or as `npc.memory`. A
    state dict may also be under `state_dict` or `model`. For the network.pt of an export, network.json is read too.

    Raises:
        UserError: there is no such file, it cannot be read as data alone, or it holds no weights.
    """
    if path.is_fifo():
        raise UserError(f"--pretrained {path}: it is a pipe, and weights are read in parts; save them as a file")
    if not path.is_file():
        raise UserError(f"--pretrained {path}: there is no such file; it takes a checkpoint or a file of weights")
    content = checkpoint.read_foreign(path)
    if not isinstance(content, Mapping):
        raise UserError(f"--pretrained {path}: it holds a {type(content).__name__}, not weights by name")
    if _is_ours(content):
        try:
            check_layout(content)
        except ValueError as error:
            raise UserError(f"--pretrained {path} {error}") from None
        return _checked(of_checkpoint(content, path), "--pretrained")
    return _of_others(content, path, "--pretrained")


def instead_of_checkpoint(path: Path, refusal: UserError) -> WeightsFile:
    """Read a file that `--resume` names and `checkpoint.load` refuses: weights of another origin, such as a checkpoint
    of the authors' code.

    Raises:
        UserError: `refusal`, if the file is a checkpoint of this project or has no weights; or a weight is not finite.
    """
    try:
        content = checkpoint.read_foreign(path) if path.is_file() else None
    except UserError:
        content = None
    if not isinstance(content, Mapping) or _is_ours(content) or not _state_dict(content)[0]:
        raise refusal
    return _of_others(content, path, "--resume")


def _is_ours(content: Mapping[str, Any]) -> bool:
    return set(content) >= _OF_OURS and all(isinstance(content[key], Mapping) for key in ("options", "net", "npc"))


def _of_others(content: Mapping[str, Any], path: Path, option: str) -> WeightsFile:
    """The weights of a checkpoint of the authors' code, or of a state dict. `option` named the file."""
    net, net_key = _state_dict(content)
    if not net:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{option} {path}: it holds no weights of a network (but {keys}); a state dict or a checkpoint with "
            "one under `net` was expected"
        )
    memory, rest = _bank(content)
    authors = net_key == "net" and ("npc" in content or "ANs_discovery" in content or memory is not None)
    kind = "a checkpoint of the authors' code" if authors else "a state dict"
    about = {key: content[key] for key in ("round", "epoch", "acc", "session") if _is_plain(content.get(key))}
    unused = [*rest, *(name for name in _UNUSED if net_key and _holds(content, name))]
    options, statistics, shrink = _described_beside(path)
    about = about if net_key else {}
    file = WeightsFile(str(path), kind, net, memory, options, statistics, None, tuple(unused), about, shrink)
    return _checked(file, option)


def _checked(file: WeightsFile, option: str) -> WeightsFile:
    """The same file, if its tensors are dense and finite.

    Raises:
        UserError: one is not.
    """
    bank = {} if file.memory is None else {"npc.memory": file.memory}
    for name, tensor in {**file.weights, **bank}.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(f"{option} {file.name}: {name} is sparse or quantised; plain numbers are needed")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{option} {file.name}: {name} holds numbers that are not finite; take another file")
    return file


def of_checkpoint(saved: Mapping[str, Any], path: Path) -> WeightsFile:
    """The weights of a checkpoint of this project that `lib.checkpoint.io` has read."""
    options, data = saved["options"], saved.get("dataset", {})
    described = {name: options[name] for name in DESCRIPTION if name in options}
    statistics = (tuple(data["means"]), tuple(data["stds"])) if "means" in data else None
    about = {key: saved[key] for key in ("session", "round", "epoch", "acc") if key in saved}
    if "name" in data:
        about.update(dataset=data["name"], training_images=data["size"])
    return WeightsFile(
        name=str(path),
        kind="a checkpoint of this project",
        weights=_without_prefixes(saved["net"]),
        memory=saved["npc"].get("memory"),
        options=described,
        statistics=statistics,
        fingerprint=data.get("fingerprint"),
        unused=tuple(name for name in _UNUSED if name in saved),
        about=about,
        shrink=None if data.get("contents") == [] else options.get("shrink"),  # images in memory are not shrunk
        contents=data.get("contents"),
        clusters=saved.get("clusters"),
    )


def description_of(file: Path) -> dict[str, Any]:
    """The content of a network.json.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON.
    """
    return json.loads(file.read_text(encoding="utf-8"))


def _described_beside(path: Path) -> tuple[dict[str, Any], Optional[Statistics], Optional[int]]:
    """Options, statistics and shrinking from the network.json beside a network.pt; none for other files."""
    description = path.with_name(NETWORK_JSON)
    if path.name != NETWORK_STATE or not description.is_file():
        return {}, None, None
    try:
        described = description_of(description)
        statistics = (_of_channels(described["means"]), _of_channels(described["stds"]))
        shrink = None if described["shrink"] is None else int(described["shrink"])
        return {name: described[name] for name in DESCRIPTION}, statistics, shrink
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--pretrained {path}: {description} beside it is not as --export writes it ({error}); correct it or move "
            "it away"
        ) from error


def _of_channels(numbers: Iterable[Any]) -> tuple[float, float, float]:
    """One number for each of the three channels; a ValueError for more or fewer."""
    red, green, blue = map(float, numbers)
    return red, green, blue


def _state_dict(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The state dict and its key; an empty key if the file itself is the state dict."""
    for key in _NETS:
        if isinstance(content.get(key), Mapping):
            return _without_prefixes(content[key]), key
    return _without_prefixes(content), ""


def _without_prefixes(net: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = {}
    for name, value in net.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        weights[name.replace(".module.", ".")] = value  # of nn.DataParallel around a part, as of an AlexNet's features
    return weights


def _bank(content: Mapping[str, Any]) -> tuple[Optional[Tensor], list[str]]:
    """The memory bank, and the names of the other entries of `npc`."""
    npc = content.get("npc")
    flat = {f"npc.{name}": value for name, value in npc.items()} if isinstance(npc, Mapping) else {}
    flat.update({name: value for name, value in content.items() if str(name).startswith("npc.")})
    if npc is not None and not isinstance(npc, Mapping):
        flat["npc"] = npc
    flat = {name.replace("npc.module.", "npc."): value for name, value in flat.items()}
    memory = flat.get("npc.memory")
    if not isinstance(memory, Tensor) or memory.dim() != 2 or not memory.is_floating_point():
        return None, sorted(flat)
    return memory, sorted(flat.keys() - {"npc.memory"})


def _holds(content: Mapping[str, Any], name: str) -> bool:
    return any(key == name or str(key).startswith(name + ".") for key in content)


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float))
