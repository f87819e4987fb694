"""Which device a run uses."""

import torch

from lib.errors import UserError


def choose(gpus: str) -> torch.device:
    """The device for `--gpus`: `auto`, `cpu`, or the index of a GPU within CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: no such device here, or several of them (one process drives one device).
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == "cpu" or (gpus == "auto" and count == 0):
        return torch.device("cpu")
    if gpus == "auto":
        return torch.device("cuda", 0)
    wanted = [int(part) for part in gpus.split(",")]
    if len(wanted) > 1:
        raise UserError(f"--gpus {gpus}: a run uses one device; name one of: {', '.join(_present(count))}")
    if wanted[0] >= count:
        raise UserError(f"--gpus {gpus}: there is no such device; here there are: {', '.join(_present(count))}")
    return torch.device("cuda", wanted[0])


def _present(count: int) -> list[str]:
    return ["cpu"] + [f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]


def describe(device: torch.device) -> str:
    """One line for the log: the device's name and, on a CPU, its threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"CPU, {torch.get_num_threads()} threads"
