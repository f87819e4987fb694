"""Runs and functions in several processes, started by the real launchers."""

import datetime
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lib.distributed.world import World
from tests.helpers.runs import ROOT, SERVER, start

SMALL = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--network", "convnet",
    "--low-dim", "16", "--precision", "fp32", "--limit-test", "30", "--batch-size", "16", "--max-round", "2",
    "--max-epoch", "2", "--optimizer", "sgd", "--base-lr", "0.01",
    "--no-log-tfb", "--no-report",
]  # fmt: skip
_ADOPT = """
import sys
from tests.helpers.fork_server import adopt
adopt({path!r})
"""
_TORCHRUN = "from torch.distributed.run import main\nmain(sys.argv[1:])\n"
_LAUNCH = """
import lib.distributed.launch as it
from lib.errors import RunError
it.MAIN = {program!r}
try:
    sys.exit(it.launch(2, sys.argv[1:]))
except RunError as error:
    sys.exit(f"error: {{error}}")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def torchrun(arguments, fresh=False, **options):
    """A running torchrun with these arguments. Unless `fresh`, its processes are forked from the fork server."""
    if fresh:
        return start(*arguments, program=("-m", "torch.distributed.run"), fresh=True, **options)
    SERVER.ready()
    return start(*arguments, program=("-c", _ADOPT.format(path=SERVER.path) + _TORCHRUN), **options)


def start_run(processes, arguments, program=("main.py",), fresh=False, **options):
    """A running program in `processes` processes of torchrun, or in one without torchrun."""
    if processes == 1:
        return start(*arguments, program=program, fresh=fresh, **options)
    flags = ["--nproc_per_node", processes, "--master_port", free_port()]
    return torchrun([*flags, *program, *arguments], fresh, **options)


def run(processes, arguments, module=None, fresh=False):
    """The finished program, whose exit status must be 0."""
    program = ("main.py",) if module is None else ("-m", module)
    process = start_run(processes, arguments, program, fresh)
    out, err = process.communicate(timeout=300)
    done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
    assert done.returncode == 0, done.stderr
    return done


def start_launcher(arguments, program=None, fresh=False, **options):
    """The running launcher of --gpus 0,1, which starts `program` or main.py in CPU processes instead."""
    code = _LAUNCH.format(program=str(program or ROOT / "main.py"))
    if not fresh:
        SERVER.ready()
    code = ("import sys\n" if fresh else _ADOPT.format(path=SERVER.path)) + code
    return start(*arguments, program=("-c", code), fresh=fresh, **options)


def launched(arguments, program=None, **variables):
    """The launcher, once it has ended."""
    process = start_launcher(arguments, program, env=variables)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def in_processes(job, size, folder, *arguments):
    """The results of `job(world, *arguments)`, a function of a module, in each of `size` processes.

    Args:
        folder: an empty one for what the processes leave.
        arguments: as JSON keeps them.
    """
    code = "from tests.helpers.processes import do; import sys; do(*sys.argv[1:])"
    given = [job.__module__, job.__name__, folder, json.dumps(arguments), size]
    running = [start(*given, rank, program=("-c", code)) for rank in range(size)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * size, said
    return [torch.load(f"{folder}/{rank}") for rank in range(size)]


def do(module, name, folder, arguments, size, rank):
    """One process of `in_processes`."""
    limit = datetime.timedelta(seconds=60)
    size, rank = int(size), int(rank)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size, timeout=limit)
    __import__(module)
    job = getattr(sys.modules[module], name)
    torch.save(job(World.joined(torch.device("cpu")), *json.loads(arguments)), f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def worker(parent, rank):
    """The process of that rank that the launcher `parent` started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        forked = f"Name:\t{rank}:{parent}\n" in status  # by the fork server
        if forked or (b"RANK=%d" % rank in environment and f"PPid:\t{parent}\n" in status):
            return int(folder.name)
    raise AssertionError("no such process")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
