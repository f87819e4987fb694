"""Joining the other processes of a run, and leaving them."""

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import torch
from torch import distributed

from lib import devices
from lib.compat import spare_process_group
from lib.distributed.place import Place
from lib.distributed.world import World
from lib.errors import LostContact, UserError

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives them up; one that has ended is noticed at once."""

LONG_PATIENCE = datetime.timedelta(days=1)
"""The same where one process may have files to fetch or to read first."""


def join(gpus: str, place: Place) -> World:
    """Meet the other processes, if there are any. This process computes on `world.device` from now on.

    NCCL connects GPUs, Gloo connects CPUs. On a CPU the processes of a machine share its cores evenly.

    Args:
        gpus: the option.
        place: of this process.

    Raises:
        UserError: there is no device for this process.
        LostContact: the others cannot be reached.
    """
    device = devices.choose(gpus, place.local_rank, place.local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # so that nothing opens a context on another
    if place.size == 1:
        return World.alone(device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))
    if not distributed.is_available():
        raise UserError("this PyTorch was built without torch.distributed; run one process")
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostContact(f"the {place.size} processes of the run do not find each other: {error}") from None
    spare_process_group()
    return World.joined(device)


def patient_barrier(world: World) -> Callable[[], None]:
    """A barrier for processes that come to it hours apart. All must ask for it, before the work that takes so long.

    The waiting is done by CPUs, which notice at once that a process has ended.
    """
    if world.size == 1:
        return lambda: None
    waiting = distributed.new_group(timeout=LONG_PATIENCE, backend="gloo")
    return lambda: distributed.barrier(group=waiting)


@contextmanager
def at_rest_after_failure(world: World) -> Iterator[None]:
    """Lets Gloo's threads come to rest before an error ends the process, which does not take leave then."""
    try:
        yield
    except BaseException:
        if world.size > 1:
            _rest()
        raise


def leave() -> None:
    """Part from the others, if there are any."""
    if distributed.is_available() and distributed.is_initialized():
        _rest()
        distributed.destroy_process_group()


def _rest() -> None:
    """A thread of Gloo's lets go of the tensors of the last exchange once it has the interpreter lock.

    If the interpreter has ended by then, that takes the process down (SIGABRT). Sleeping leaves it the lock;
    microseconds would do.
    """
    time.sleep(0.5)
