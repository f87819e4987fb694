"""Runs in several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import ROOT

SMALL = [
    "--cfgs",
    "configs/base.yaml",
    "configs/digits.yaml",
    "--gpus",
    "cpu",
    "--low-dim",
    "16",
    "--precision",
    "fp32",
]


SMALL += ["--limit-test", "30", "--batch-size", "16", "--max-round", "2", "--max-epoch", "2"]


SMALL += ["--optimizer", "sgd", "--base-lr", "0.01"]


LAUNCH = """
import sys
from lib.distributed.launch import launch
from lib.errors import RunError
try:
    sys.exit(launch(2, sys.argv[1:]))
except RunError as error:
    sys.exit(f"error: {error}")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(processes, arguments, module=None):
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += [] if processes == 1 else ["--master_port", str(free_port())]
    program = ["main.py"] if module is None else ["-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launcher, *program, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def launched(arguments, program=None, **variables):
    """The finished launcher of --gpus 0,1, with CPU processes in the GPUs' place, that run `program` or main.py."""
    chosen = "" if program is None else f"import lib.distributed.launch as it; it.MAIN = {str(program)!r}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [sys.executable, "-c", chosen + LAUNCH, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def worker(parent, rank):
    """The process of that rank among the descendants of `parent`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        if b"RANK=%d" % rank in environment and f"PPid:\t{parent}\n" in status:
            return int(folder.name)
    raise AssertionError("no such process")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
