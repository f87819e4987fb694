"""Whether all processes of a run were asked for the same: on several machines each has its own command and files."""

import hashlib
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from lib.config import OPTIONS, Options
from lib.distributed.world import World, number_of
from lib.errors import UserError
from lib.pretrained.weights_file import WeightsFile

_OF_A_MACHINE = frozenset(
    ["cfgs", "data_root", "sess_dir", "gpus", "threads", "workers_num", "prefetch", "download", "brief", "debug_errors"]
)
"""Options that may differ from machine to machine."""

_FILES = frozenset(["labels", "resume", "pretrained", "export", "embed", "output"])
"""Options that all or none must be given; where the files lie may differ."""


def check_same_call(
    world: World,
    options: Options,
    dtype: Optional[torch.dtype],
    saved: Optional[dict[str, Any]],
    weights: Optional[WeightsFile],
) -> None:
    """Whether options, precision and weights are the same in all processes. All must call it.

    Args:
        world: the processes.
        options: merged, of this one.
        dtype: of autocast, or None: what --precision has come to here.
        saved: the checkpoint that this one has read, or None.
        weights: what it has read for --pretrained, or None.

    Raises:
        UserError: some have others; all processes raise it.
    """
    if world.size == 1:
        return
    asked = _asked(options)
    own = [number_of(repr(value).encode()) for value in [*asked.values(), dtype]]
    every = world.hear_all([*own, number_of(_read(saved, weights))])
    for rank, heard in enumerate(every):
        different = [flag for flag, one, other in zip(asked, every[0], heard) if one != other]
        if different:
            raise UserError(
                f"rank {rank} was started with another {', '.join(different)} than rank 0; give all machines the same "
                "options"
            )
        if heard[len(asked)] != every[0][len(asked)]:
            raise UserError(
                f"rank {rank} would compute in another precision than rank 0; give all machines --precision fp32, or "
                "bf16 if all have it"
            )
        if heard != every[0]:
            raise UserError(
                f"rank {rank} has read other weights than rank 0; give all machines the same checkpoint (--resume, "
                "--pretrained)"
            )


def _asked(options: Options) -> dict[str, Any]:
    """What must be the same, by the flags of the options."""
    asked = {}
    for option in OPTIONS:
        if option.name not in _OF_A_MACHINE:
            value = getattr(options, option.name)
            asked[option.flag] = value is not None if option.name in _FILES else value
    return asked


def _read(saved: Optional[dict[str, Any]], weights: Optional[WeightsFile]) -> bytes:
    """A digest of the weights and the bank, and of where in the run they are."""
    digest = hashlib.blake2b()
    if saved is not None:
        digest.update(repr([saved["round"], saved["epoch"], saved.get("step")]).encode())
        _add(digest, saved["net"])
        _add(digest, saved["npc"])
    if weights is not None:
        _add(digest, weights.weights)
        _add(digest, {} if weights.memory is None else {"memory": weights.memory})
    return digest.digest()


def _add(digest: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy does not know
            digest.update(known.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8))
