"""Joins and leaves the process group of a run, and distinguishes peer failures from a process's own errors."""

import datetime
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed

from lib.compat import keep_process_group
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import Interrupted, PeerFailure, UserError
from lib.runtime.device import choose_device
from lib.runtime.threads import cores

START_TIMEOUT = datetime.timedelta(minutes=3)
"""How long a process waits for the others to start. All start at the same time and import PyTorch first."""

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a collective waits for the other processes; one that ends is noticed at once."""

_KINDS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Error classes of torch.distributed, by name: PyTorch 1.10 raises a bare RuntimeError instead."""

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
"""Parts of the messages with which Gloo, NCCL and the rendezvous store report failed communication."""

_MISTAKES = (
    "op.preamble",
    "invalid usage",
    "invalid argument",
    "invalidusage",
    "invalidargument",
    "unhandled cuda error",
)
"""Parts of messages about a mismatched collective or about a failure of this process's own device."""


def join(gpus: str, process: ProcessInfo) -> World:
    """Join the process group, if there are several processes, and choose this process's device.

    NCCL connects GPUs, Gloo connects CPUs. The processes of a machine share its cores evenly.

    Args:
        gpus: the option.
        process: this process.

    Raises:
        UserError: there is no device for this process, or the processes would use devices of different kinds; or the
            variables of a launcher are inconsistent.
        PeerFailure: the other processes cannot be reached.
    """
    _check_variables(process, os.environ)
    device = choose_device(gpus, process.local_rank, process.local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise contexts open on the first GPU too
    if process.size == 1:
        return World.alone(device)
    # torchrun sets one thread; with GPUs, too, searching and clustering run on the CPU
    torch.set_num_threads(max(1, cores() // process.local_size))
    if not distributed.is_available():
        raise UserError("this PyTorch was built without torch.distributed; run one process")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, store=_rendezvous(process, device), rank=process.rank, world_size=process.size, timeout=TIMEOUT
        )
        keep_process_group()
        if backend != "gloo":
            distributed.new_group(timeout=TIMEOUT, backend="gloo")  # connects the CPUs with this timeout
        return World.joined(device)
    except (RuntimeError, ValueError) as error:
        raise PeerFailure(
            f"the {process.size} processes of the run cannot connect to each other ({_first_line(error)}); if none "
            "of them reports why, check the arguments of torchrun on each machine, and name the network between them "
            "in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from None


def _check_variables(process: ProcessInfo, environment: Mapping[str, str]) -> None:
    """Raises UserError if the launcher's variables are inconsistent, for example left over from another program."""
    if not process.launched:
        return
    wrong = []
    if not (process.rank < process.size and process.local_rank < process.local_size <= process.size):
        wrong = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    elif process.size > 1 and not environment.get("MASTER_ADDR"):
        wrong = ["MASTER_ADDR"]
    elif process.size > 1 and not environment.get("MASTER_PORT", "").isdecimal():
        wrong = ["MASTER_PORT"]
    if wrong:
        shown = ", ".join(f"{name}={environment.get(name, '')}" for name in wrong)
        raise UserError(
            f"the environment says that a launcher started this process, but {shown} cannot be; start it by torchrun, "
            "or unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
        )


def _rendezvous(process: ProcessInfo, device: torch.device) -> Any:
    """The rendezvous store of torchrun, once all processes have joined it.

    Raises:
        UserError: the processes would use devices of different kinds; all raise it.
    """
    from torch.distributed.rendezvous import rendezvous  # PyTorch built without torch.distributed lacks it

    store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
    store.set(f"device: {process.rank}", device.type)
    names = [f"device: {rank}" for rank in range(process.size)]
    store.wait(names, START_TIMEOUT)
    kinds = [store.get(name).decode() for name in names]
    others = [rank for rank, kind in enumerate(kinds) if kind != kinds[0]]
    if others:
        raise UserError(
            f"rank {others[0]} would compute on {kinds[others[0]]} and rank 0 on {kinds[0]}; see why --gpus finds "
            "no GPU there, or pass --gpus cpu on all machines"
        )
    return store


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def joined(gpus: str, process: ProcessInfo) -> Iterator[World]:
    """Joins the process group (see `join`) and leaves it at the end.

    Enter it before reading any file: a process that fails inside closes its connections, so that the others notice at
    once, on other machines too.
    """
    world = join(gpus, process)
    try:
        yield world
    except BaseException as error:
        if world.size > 1:  # destroying the group could wait for a process that is gone
            if isinstance(error, Interrupted) and error.by_all:
                _stop_with_all(world)
            _let_gloo_finish()
        raise
    leave()


def _stop_with_all(world: World) -> None:
    """Wait until all processes have saved: the launcher sends SIGTERM to the others once one has exited.

    From then on signals are ignored: only the final message is left to print.
    """
    with suppress(RuntimeError):  # a process that failed instead has reported why
        world.long_barrier()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def leave() -> None:
    """Destroy the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        _let_gloo_finish()
        distributed.destroy_process_group()


def _let_gloo_finish() -> None:
    """Sleep so that Gloo's thread gets the interpreter lock and releases the tensors of the last collective.

    If the interpreter has exited by then, the process aborts (SIGABRT). Microseconds would be enough.
    """
    time.sleep(0.5)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error reports that another process has ended or cannot be reached.

    Any other error is this process's own, whatever happened to the others.
    """
    words = str(error).lower()
    if any(part in words for part in _MISTAKES):
        return False
    return type(error).__name__ in _KINDS or any(part in words for part in _WORDS)
