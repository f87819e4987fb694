"""The device and the precision that a process computes with."""

from pathlib import Path
from typing import Optional

import torch

from lib.compat import TORCH_RELEASE
from lib.errors import UserError


def choose_device(gpus: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device for `--gpus`: `auto`, `cpu`, or indices of GPUs within CUDA_VISIBLE_DEVICES.

    Args:
        gpus: the option.
        local_rank, local_size: of this process on its machine; each process uses one device.

    Raises:
        UserError: there is no such device, or not one for each process.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == "cpu" or (gpus == "auto" and count == 0):
        return torch.device("cpu")
    wanted = list(range(min(local_size, count))) if gpus == "auto" else _gpu_indices(gpus)
    missing = [index for index in wanted if index >= count]
    if missing:
        raise UserError(f"--gpus {gpus}: no such device; this machine has: {', '.join(_present(count))}")
    if len(wanted) != local_size:
        raise UserError(
            f"--gpus {gpus}: {local_size} process(es) on this machine need as many GPUs, one for each; "
            f"this machine has: {', '.join(_present(count))}"
        )
    return torch.device("cuda", wanted[local_rank])


def _gpu_indices(gpus: str) -> list[int]:
    """The GPUs that `--gpus` names; none for `auto` and `cpu`."""
    return [] if gpus in ("auto", "cpu") else [int(part) for part in gpus.split(",")]


def _present(count: int) -> list[str]:
    return ["cpu"] + [f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]


def describe_device(device: torch.device) -> str:
    """The device for the log: its name or, for a CPU, the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"


def choose_precision(precision: str, device: torch.device) -> Optional[torch.dtype]:
    """The dtype of autocast for `--precision`, or None for float32. Outside the network everything is float32.

    `auto` chooses bfloat16 where it is faster: CUDA from Ampere on, CPUs with AMX, AMD's with AVX512-BF16.
    """
    if precision == "bf16" or (precision == "auto" and has_bf16(device)):
        return torch.bfloat16
    return None


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if TORCH_RELEASE < (2, 0):  # older releases have few CPU kernels for bfloat16
        return False
    vendor, flags = _cpu()
    # an Intel Xeon with AVX512-BF16 alone takes 1.1 to 1.4 times as long for a step of ResNet18 in it as in float32
    return "amx_bf16" in flags or (vendor == "AuthenticAMD" and "avx512_bf16" in flags)


def _cpu() -> tuple[str, set[str]]:
    """The vendor and the flags of this machine's processor; empty where the system is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", set()
    fields = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("vendor_id", "").strip(), set(fields.get("flags", "").split())


def describe_precision(dtype: Optional[torch.dtype]) -> str:
    """The precision for the log and starts.jsonl."""
    return "float32" if dtype is None else "bfloat16 in the network, float32 elsewhere"


def precision_note(precision: str, dtype: Optional[torch.dtype]) -> Optional[str]:
    """The log's note where `--precision auto` chose another precision than the authors' float32, or None."""
    if precision != "auto" or dtype is None:
        return None
    return "the paper's numbers were computed in float32: --precision fp32 computes in it"
