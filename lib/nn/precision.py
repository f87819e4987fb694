"""In which precision the network computes. Features, logits, bank and entropies are float32 in any case."""

import contextlib
from pathlib import Path
from typing import Optional

import torch

from lib.compat import TORCH_RELEASE


def choose(precision: str, device: torch.device) -> Optional[torch.dtype]:
    """The dtype of autocast for `--precision`, or None for plain float32.

    `auto` takes bfloat16 where the hardware multiplies in it: CUDA from Ampere on, and CPUs with AVX512-BF16 or AMX.
    """
    if precision == "bf16" or (precision == "auto" and has_bf16(device)):
        return torch.bfloat16
    return None


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if TORCH_RELEASE < (2, 0):  # before, few CPU kernels knew bfloat16
        return False
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":")[1].split())
    except OSError:
        pass  # not Linux: nothing is known, so float32
    return set()


def autocast(device: torch.device, dtype: Optional[torch.dtype]):
    """The context in which the network runs forward."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def describe(dtype: Optional[torch.dtype]) -> str:
    """For the log and starts.jsonl."""
    return "float32" if dtype is None else "bfloat16 in the network, float32 elsewhere"


def note(precision: str, dtype: Optional[torch.dtype]) -> Optional[str]:
    """What the log adds where `--precision auto` has chosen otherwise than the authors' code computed."""
    if precision != "auto" or dtype is None:
        return None
    return "the paper's numbers were made in float32: --precision fp32 computes in it"
