"""Taking over the weights that fit a network, and naming those that do not."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.pretrained.weights_file import WeightsFile

LAST = "fc."
"""The linear map to the feature. The rest of a network is of use without its weights, not the other way round."""

_LISTED = 6
_COUNTER = "num_batches_tracked"  # of batch norm; older PyTorch had none, and nothing here depends on it


@dataclass(frozen=True)
class Fit:
    """What became of a file of weights.

    Attributes:
        taken: how many tensors the network took over.
        misfits: what did not fit, one line each.
        left: names of the network's tensors that are as they were.
    """

    taken: int
    misfits: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def only_last_missing(self) -> bool:
        """Whether everything but, at most, the last layer was taken over."""
        return all(name.startswith(LAST) for name in self.left)


@torch.no_grad()
def fit(network: nn.Module, file: WeightsFile) -> Fit:
    """Copy into `network` the weights whose name and shape are its own.

    Besides torchvision's names for ResNets those of the authors' network are known: `shortcut` for `downsample`,
    `linear` for `fc`.

    Raises:
        UserError: nothing fits.
    """
    own = network.state_dict()
    offered = {_own_name(name, own): value for name, value in file.weights.items()}
    taken = {name: value for name, value in offered.items() if name in own and own[name].shape == value.shape}
    if not any(name for name in taken if not name.endswith(_COUNTER)):
        raise UserError(
            f"{file.name}: none of its {len(file.weights)} tensors ({', '.join(list(file.weights)[:3])}, ...) fits the "
            "network that --network, --low-dim, --stem and --size describe"
        )
    for name, value in taken.items():
        own[name].copy_(value)
    left = tuple(name for name in own if name not in taken and not name.endswith(_COUNTER))
    return Fit(len(taken), _misfits(own, offered, left), left)


def complete(found: Fit, file: WeightsFile, network: str, use: str) -> None:
    """Refuse a network of which more than the last layer is random, where nothing is to be learnt any more.

    Args:
        network: its name. use: the option, for the message.

    Raises:
        UserError: it is such a network.
    """
    if found.only_last_missing:
        return
    raise UserError(
        f"{use}: {file.name} does not fill --network {network}: {_listed(found.misfits)}; choose the --network, --stem "
        "and --low-dim it was made with"
    )


def report(found: Fit, file: WeightsFile, network: str) -> list[str]:
    """Lines for the log: what the file is, what was taken, and everything that was not."""
    lines = [f"{file.name}: {file.kind}; {found.taken} of its {len(file.weights)} tensors taken into {network}"]
    lines += [f"does not fit: {misfit}" for misfit in found.misfits[:_LISTED]]
    if len(found.misfits) > _LISTED:
        lines.append(f"and {len(found.misfits) - _LISTED} more that do not fit")
    if file.unused:
        lines.append(f"not used: {', '.join(file.unused)}")
    return lines


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    if name in own:
        return name
    other = name.replace(".shortcut.", ".downsample.")
    if other.startswith("linear."):
        other = LAST + other[len("linear.") :]
    return other if other in own else name


def _misfits(own: Mapping[str, Tensor], offered: Mapping[str, Tensor], left: tuple[str, ...]) -> tuple[str, ...]:
    lines = []
    for name in left:
        if name in offered:
            lines.append(f"{name} is {_shape(offered[name])} in the file, {_shape(own[name])} here")
        else:
            lines.append(f"{name} is not in the file")
    lines += [f"{name} of the file is not in the network" for name in offered if name not in own]
    return tuple(lines)


def _listed(misfits: tuple[str, ...]) -> str:
    more = f", and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    return ", ".join(misfits[:3]) + more


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"
