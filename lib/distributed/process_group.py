"""Joining the other processes of a run, and leaving them."""

import datetime
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed

from lib.compat import spare_process_group
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import Interrupted, PeerFailure, UserError
from lib.runtime.device import choose_device
from lib.runtime.threads import cores

MEETING = datetime.timedelta(minutes=3)
"""How long a process waits for the others to start: they do at the same time, and load no more than PyTorch first."""

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives them up; one that has ended is noticed at once."""

_KINDS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Classes of errors of torch.distributed, by their names: PyTorch 1.10 raises a bare RuntimeError instead."""

_WORDS = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "socket timeout",
    "wait timeout",
    "caused pair closure",
    "gloo/transport",
    "nccl",
    "tcpstore",
)
"""What communication that failed says: Gloo, NCCL and the store where processes meet."""

_MISTAKES = (
    "op.preamble",
    "invalid usage",
    "invalid argument",
    "invalidusage",
    "invalidargument",
    "unhandled cuda error",
)
"""What a call says that did not fit those of the other processes, or that failed on this process's own device."""


def join(gpus: str, place: ProcessInfo) -> World:
    """Meet the other processes, if there are any. This process computes on `world.device` from now on.

    NCCL connects GPUs, Gloo connects CPUs. The processes of a machine share its cores evenly.

    Args:
        gpus: the option.
        place: of this process.

    Raises:
        UserError: there is no device for this process, or one of another kind than for the others; or the variables of
            a launcher are set, and not as a launcher sets them.
        PeerFailure: the others cannot be reached.
    """
    _check_variables(place, os.environ)
    device = choose_device(gpus, place.local_rank, place.local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # so that nothing opens a context on another
    if place.size == 1:
        return World.alone(device)
    # torchrun leaves each a single one; searches and clusters are the CPU's work on GPUs, too
    torch.set_num_threads(max(1, cores() // place.local_size))
    if not distributed.is_available():
        raise UserError("this PyTorch was built without torch.distributed; run one process")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, store=_meet(place, device), rank=place.rank, world_size=place.size, timeout=PATIENCE
        )
        spare_process_group()
        if backend != "gloo":
            distributed.new_group(timeout=PATIENCE, backend="gloo")  # the first to connect CPUs; others are patient
        return World.joined(device)
    except (RuntimeError, ValueError) as error:
        raise PeerFailure(
            f"the {place.size} processes of the run do not find each other ({_first_line(error)}); if none of them "
            "says why, see that what torchrun was told is right on each machine, and name the network between them in "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from None


def _check_variables(place: ProcessInfo, environment: Mapping[str, str]) -> None:
    """Whether they are as torchrun sets them: a shell may hold what another program has left."""
    if not place.launched:
        return
    wrong = []
    if not (place.rank < place.size and place.local_rank < place.local_size <= place.size):
        wrong = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    elif place.size > 1 and not environment.get("MASTER_ADDR"):
        wrong = ["MASTER_ADDR"]
    elif place.size > 1 and not environment.get("MASTER_PORT", "").isdecimal():
        wrong = ["MASTER_PORT"]
    if wrong:
        shown = ", ".join(f"{name}={environment.get(name, '')}" for name in wrong)
        raise UserError(
            f"the environment says that a launcher started this process, but {shown} cannot be; start it by torchrun, "
            "or unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
        )


def _meet(place: ProcessInfo, device: torch.device) -> Any:
    """The store where torchrun has the processes meet, once all of them are there.

    Raises:
        UserError: they would compute on devices of different kinds; all raise it.
    """
    from torch.distributed.rendezvous import rendezvous  # not every PyTorch has it

    store, _, _ = next(rendezvous("env://", timeout=MEETING))
    store.set(f"here: {place.rank}", device.type)
    names = [f"here: {rank}" for rank in range(place.size)]
    store.wait(names, MEETING)
    kinds = [store.get(name).decode() for name in names]
    others = [rank for rank, kind in enumerate(kinds) if kind != kinds[0]]
    if others:
        raise UserError(
            f"rank {others[0]} would compute on {kinds[others[0]]} and rank 0 on {kinds[0]}; see why --gpus finds "
            "no GPU there, or give all machines --gpus cpu"
        )
    return store


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def together(gpus: str, place: ProcessInfo) -> Iterator[World]:
    """Within it the processes are joined; see `join`.

    It is entered before any of them reads a file: one that fails from then on closes its connections, by which the
    others notice at once, on other machines too.
    """
    world = join(gpus, place)
    try:
        yield world
    except BaseException as error:
        if world.size > 1:  # taking leave could wait for a process that is gone
            if isinstance(error, Interrupted) and error.by_all:
                _stop_together(world)
            _rest()
        raise
    leave()


def _stop_together(world: World) -> None:
    """Wait until all have put down what they had to: a launcher ends the others with SIGTERM once one has left.

    From then on signals count no more: there is nothing left but to say where the run stopped.
    """
    with suppress(RuntimeError):  # a process that failed instead has said why
        world.long_barrier()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


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


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error says that another process has ended or cannot be reached.

    Any other error is one of this process, whatever happened to the others.
    """
    words = str(error).lower()
    if any(part in words for part in _MISTAKES):
        return False
    return type(error).__name__ in _KINDS or any(part in words for part in _WORDS)
