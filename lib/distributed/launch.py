"""Starts several processes on this machine for `--gpus 0,1`, through torchrun's API."""

import logging
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lib.compat import own_address
from lib.errors import PEER_FAILURE, Interrupted, RunError

_STOPPED = [128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]  # see `Interrupted`

_TOGETHER = 2
"""Seconds within which failures count as simultaneous. PyTorch's launcher polls once a second; after a failure it sends
SIGTERM to the remaining processes, and SIGKILL 30 s later."""

MAIN = Path(__file__).resolve().parents[2] / "main.py"


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `main.py` with these arguments in `processes` processes and wait for them.

    Returns:
        the exit status: 0, or 2 after a mistake in the call, which a process has reported.

    Raises:
        RunError: a process failed or was killed; the others are terminated.
        Interrupted: a signal asked the run to stop, and all processes stopped.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are reported below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{_free_port()}",
        max_restarts=0,
        monitor_interval=1,
        **own_address(LaunchConfig),
    )
    try:
        elastic_launch(config, sys.executable)(str(MAIN), *arguments)
    except SignalException as stop:
        # the launcher forwarded it; rank 0 has reported what was saved
        raise Interrupted(stop.sigval, f"{stop.sigval.name}: all {processes} processes have ended") from None
    except ChildFailedError as error:
        rank, failure = _cause(error.failures)
        if failure.exitcode in _STOPPED:
            number = failure.exitcode - 128
            raise Interrupted(number, f"{signal.Signals(number).name}: all {processes} processes have ended") from None
        if failure.exitcode == 2:
            return 2
        raise RunError(
            f"rank {rank} (process {failure.pid}) {_end(failure.exitcode)}, so all {processes} processes were ended; "
            "what was saved is intact: resume with --resume last and the same --gpus"
        ) from None
    return 0


def _cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of the process that caused the failure, not by a peer failure or the launcher's SIGTERM."""
    first = min(failure.timestamp for failure in failures.values())

    def order(entry: tuple[int, ProcessFailure]) -> tuple[int, int]:
        status, time = entry[1].exitcode, entry[1].timestamp
        if status > 0 and status != PEER_FAILURE and status not in _STOPPED:
            return 0, time
        if status < 0 and status != -signal.SIGTERM and time <= first + _TOGETHER:
            return 1, time
        return (2 if status == PEER_FAILURE else 3), time

    return min(failures.items(), key=order)


def _end(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    if exit_code == PEER_FAILURE:
        return "lost its connection to the other processes"
    return f"ended with status {exit_code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
