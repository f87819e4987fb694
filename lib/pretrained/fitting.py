"""Fitting weights to a network: load those that match, and name the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pretrained.weights_file import WeightsFile

LAST = "fc."
"""The prefix of the last layer, the linear map to the feature. Only it may be missing."""

_LISTED = 20
_COUNTER = "num_batches_tracked"  # of batch norm; older PyTorch had none, and nothing here depends on it


@dataclass(frozen=True)
class Fit:
    """How the weights of a file fit a network.

    Attributes:
        loaded: the number of tensors that were loaded.
        misfits: a line for each tensor that does not fit.
        missing: names of the network's tensors that were not loaded.
        foreign: names in the file that begin like a stage of the network but are not tensors of it.
    """

    loaded: int
    misfits: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def last_is_random(self) -> bool:
        """Whether the last layer, or a part of it, was not loaded and is random."""
        return any(name.startswith(LAST) for name in self.missing)

    @property
    def whole(self) -> bool:
        """Whether it is the same network and all of it was loaded, but for the last layer perhaps."""
        return not self.foreign and all(name.startswith(LAST) for name in self.missing)


def load_exactly(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all the weights of a checkpoint.

    Raises:
        UserError: the weights are of another network.
    """
    check_network(network, weights, source)
    network.load_state_dict(weights)


def check_network(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Check that the weights of a checkpoint are exactly those of a network.

    Raises:
        UserError: they are not.
    """
    own = network.state_dict()
    left = tuple(name for name in own if name not in weights or not _fits(own[name], weights[name]))
    misfits = _misfits(own, weights, left)
    if misfits:
        raise UserError(
            f"checkpoint {source} holds another network than --network, --low-dim, --stem and --size describe: "
            + _listed(misfits)
        )


@torch.no_grad()
def load_matching(network: nn.Module, file: WeightsFile) -> Fit:
    """Load the weights whose name and shape match the network's.

    Names may be torchvision's or those of the authors' ResNet (`shortcut` for `downsample`, `linear` for `fc`). An
    AlexNet of `features` and `classifier` is matched by the order of its layers.

    Raises:
        UserError: nothing fits, or nothing but the last layer.
    """
    own = network.state_dict()
    weights = _alexnet_by_stage(file.weights) if "conv5.0.weight" in own else file.weights
    offered = {_own_name(name, own): value for name, value in weights.items()}
    taken = {name: value for name, value in offered.items() if name in own and _fits(own[name], value)}
    if not any(name for name in taken if not name.endswith(_COUNTER) and not name.startswith(LAST)):
        raise UserError(
            f"{file.name}: none of its {len(file.weights)} tensors ({', '.join(list(file.weights)[:3])}, ...) fits the "
            "network that --network, --low-dim, --stem and --size describe"
        )
    for name, value in taken.items():
        own[name].copy_(value)
    left = tuple(name for name in own if name not in taken and not name.endswith(_COUNTER))
    stages = {name.split(".")[0] for name in own}
    foreign = tuple(name for name in offered if name not in own and name.split(".")[0] in stages)
    return Fit(len(taken), _misfits(own, offered, left), left, foreign)


def check_complete(found: Fit, file: WeightsFile, network: str) -> None:
    """Raise UserError if more than the last layer of a network that is not trained further is random.

    Args:
        network: its name.

    Raises:
        UserError: more than the last layer is random, or the weights are of another network.
    """
    if found.whole:
        return
    raise UserError(
        f"{file.name} does not fit --network {network}: {_listed(found.misfits)}; choose the --network, --stem "
        "and --low-dim it was made with"
    )


def fit_lines(found: Fit, file: WeightsFile, network: str) -> list[str]:
    """Lines for the log: what the file is, what was loaded, and what was not."""
    lines = [f"{file.name}: {file.kind}; {found.loaded} of its {len(file.weights)} tensors loaded into {network}"]
    lines += [f"does not fit: {misfit}" for misfit in found.misfits[:_LISTED]]
    if len(found.misfits) > _LISTED:
        lines.append(f"and {len(found.misfits) - _LISTED} more that do not fit")
    if file.unused:
        lines.append(f"not used: {', '.join(file.unused)}")
    return lines


def _alexnet_by_stage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an AlexNet that is a list of layers, `features.N` and `classifier.N`, under the names of models/.

    The k-th convolution and the batch norm after it become conv<k>.0 and conv<k>.1, the linear layers hidden.1,
    hidden.4 and fc. A batch norm after a linear layer counts as a foreign part of hidden: this project's AlexNet has
    none.
    """
    numbered = {name: name.split(".", 2) for name in weights if name.startswith(("features.", "classifier."))}
    if any(len(parts) < 3 or not parts[1].isdigit() for parts in numbered.values()):
        return dict(weights)
    convolutions, linears = (
        sorted({int(parts[1]) for name, parts in numbered.items() if weights[name].dim() == dimensions})
        for dimensions in (4, 2)
    )
    stages = dict(zip(linears, ("hidden.1", "hidden.4", "fc")))
    renamed = {}
    for name, value in weights.items():
        if name not in numbered:
            renamed[name.replace("top_layer.", LAST, 1) if name.startswith("top_layer.") else name] = value
            continue
        part, number, rest = numbered[name][0], int(numbered[name][1]), numbered[name][2]
        if part == "classifier":
            renamed[f"{stages.get(number, f'hidden.{number}')}.{rest}"] = value
        else:
            before = [layer for layer in convolutions if layer <= number]
            renamed[f"conv{len(before)}.{int(number not in convolutions)}.{rest}"] = value
    return renamed


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    if name in own:
        return name
    other = name.replace(".shortcut.", ".downsample.")
    if other.startswith("linear."):
        other = LAST + other[len("linear.") :]
    return other if other in own else name


def _fits(own: Tensor, offered: Tensor) -> bool:
    return own.shape == offered.shape and own.is_floating_point() == offered.is_floating_point()


def _misfits(own: Mapping[str, Tensor], offered: Mapping[str, Tensor], left: tuple[str, ...]) -> tuple[str, ...]:
    lines = []
    for name in left:
        if name in offered:
            lines.append(f"{name} is {_described(offered[name])} in the file, {_described(own[name])} here")
        else:
            lines.append(f"{name} is not in the file")
    lines += [f"{name} of the file is not in the network" for name in offered if name not in own]
    return tuple(lines)


def _listed(misfits: tuple[str, ...]) -> str:
    more = f", and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    return ", ".join(misfits[:3]) + more


def _described(value: Tensor) -> str:
    shape = " x ".join(map(str, value.shape)) or "a number"
    return shape if value.is_floating_point() else f"{shape} of {str(value.dtype).replace('torch.', '')}"
