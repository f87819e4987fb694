"""Errors that another process caused, and the process that caused the failure when several end."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lib.distributed.launch import _cause, _end
from lib.distributed.process_group import is_peer_failure
from lib.errors import PEER_FAILURE


class DistBackendError(RuntimeError):
    """As PyTorch 2 raises it."""


@pytest.mark.parametrize(
    "words",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:23456",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error [::1]:1: Connection reset by peer",
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 600000ms for recv operation",
        "Application timeout caused pair closure",
        "writev [127.0.0.1]:1: Broken pipe",
        "NCCL communicator was aborted on rank 1.",
        "NCCL error in: ../torch/lib/c10d/ProcessGroupNCCL.cpp:1, remote process exited or there was a network error",
        "TCPStore: Socket Timeout",
    ],
)
def test_failed_communication_is_a_peer_failure(words):
    assert is_peer_failure(RuntimeError(words))


@pytest.mark.parametrize(
    "words",
    [
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
        "DataLoader worker (pid 7) is killed by signal: Killed.",
        "DataLoader timed out after 5 seconds",
        "ProcessGroupGloo::allreduce: invalid tensor type",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4",
        "NCCL error in: ProcessGroupNCCL.cpp:1, invalid usage, NCCL version 21.0.3",
        "NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "CUDA error: device-side assert triggered",
        "",
    ],
)
def test_other_errors_are_those_of_this_process(words):
    assert not is_peer_failure(RuntimeError(words))


def test_torch_distributed_errors_are_recognised_by_class():
    assert is_peer_failure(DistBackendError("something new"))
    assert not is_peer_failure(DistBackendError("ncclInvalidUsage: Duplicate GPU detected"))


KILLED, ENDED, STOPPED = -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("outcomes", "cause"),
    [
        ({0: (PEER_FAILURE, 100), 1: (1, 100)}, 1),
        ({0: (PEER_FAILURE, 100), 1: (2, 101)}, 1),
        ({0: (STOPPED, 100), 1: (1, 100)}, 1),  # ended by the launcher after the other's failure
        ({0: (ENDED, 100), 1: (1, 100)}, 1),
        ({0: (KILLED, 130), 1: (1, 100)}, 1),
        ({0: (KILLED, 130), 1: (PEER_FAILURE, 100)}, 1),
        ({0: (STOPPED, 100), 1: (PEER_FAILURE, 100)}, 1),
        ({0: (PEER_FAILURE, 100), 1: (KILLED, 100)}, 1),
        ({0: (PEER_FAILURE, 100), 1: (KILLED, 101), 2: (ENDED, 101)}, 1),
        ({0: (PEER_FAILURE, 100), 1: (PEER_FAILURE, 99)}, 1),
        ({0: (1, 101), 1: (1, 100)}, 1),
        ({0: (STOPPED, 101), 1: (STOPPED, 100)}, 1),
    ],
)
def test_the_process_that_caused_the_failure_is_named(outcomes, cause):
    failures = {}
    for rank, (status, time) in outcomes.items():
        failures[rank] = ProcessFailure(rank, 1000 + rank, status, "/no file")
        failures[rank].timestamp = time
    assert _cause(failures)[0] == cause


def test_exit_statuses_in_words():
    assert _end(KILLED) == "was killed by SIGKILL"
    assert _end(PEER_FAILURE) == "lost its connection to the other processes"
    assert _end(1) == "ended with status 1"
