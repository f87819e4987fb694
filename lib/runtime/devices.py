"""Which device a process uses."""

import torch

from lib.errors import UserError


def choose(gpus: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device for `--gpus`: `auto`, `cpu`, or indices of GPUs within CUDA_VISIBLE_DEVICES.

    Args:
        gpus: the option.
        local_rank, local_size: which of how many processes on this machine this is; each drives one device.

    Raises:
        UserError: there is no such device here, or not one for each process.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == "cpu" or (gpus == "auto" and count == 0):
        return torch.device("cpu")
    wanted = list(range(min(local_size, count))) if gpus == "auto" else indices(gpus)
    missing = [index for index in wanted if index >= count]
    if missing:
        raise UserError(f"--gpus {gpus}: there is no such device; here there are: {', '.join(_present(count))}")
    if len(wanted) != local_size:
        raise UserError(
            f"--gpus {gpus}: {local_size} process(es) on this machine need as many GPUs, one for each; "
            f"here there are: {', '.join(_present(count))}"
        )
    return torch.device("cuda", wanted[local_rank])


def indices(gpus: str) -> list[int]:
    """The GPUs that `--gpus` names; none for `auto` and `cpu`."""
    return [] if gpus in ("auto", "cpu") else [int(part) for part in gpus.split(",")]


def _present(count: int) -> list[str]:
    return ["cpu"] + [f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]


def describe(device: torch.device) -> str:
    """One line for the log: the device's name and, on a CPU, its threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
