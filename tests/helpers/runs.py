"""Start main.py as a user does, in a process of its own."""

import atexit
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.fork_server import ForkedProcess, ForkServer

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--network", "convnet", "--precision",
    "fp32", "--limit-train", "40", "--limit-test", "30", "--batch-size", "8", "--low-dim", "16", "--max-round", "2",
    "--max-epoch", "2", "--optimizer", "sgd", "--base-lr", "0.01", "--momentum", "0", "--no-nesterov", "--save-every",
    "2", "--brief", "--no-log-tfb", "--no-report",
]  # fmt: skip
WORKERS = ["--augment-on", "workers", "--workers-num", "2", "--iter-size", "2"]
SERVER = ForkServer()
atexit.register(SERVER.close)


def start(*arguments, program=("main.py",), fresh=False, env=None, **options):
    """A running program of Python, whose output can be read.

    Args:
        program: what comes before the arguments; -m or -c as of Python.
        fresh: in a new interpreter, and not forked from one that has imported everything.
        env: variables to change; None takes one out.
        options: as of subprocess.Popen.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    environment = {name: str(value) for name, value in environment.items() if value is not None}
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
               "errors": "surrogateescape", **options}  # fmt: skip
    arguments = [*map(str, program), *map(str, arguments)]
    if fresh:
        return subprocess.Popen([sys.executable, *arguments], env=environment, preexec_fn=_default_signals, **options)
    return ForkedProcess(SERVER, arguments, environment, **options)


def _default_signals():
    """Restore the default signal handlers: a background shell or nohup ignores signals, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def call(*arguments, timeout=120, **options):
    """(status, standard output, standard error) of a program that `start` starts."""
    process = start(*arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return process.returncode, out, err


_KILLED = """
import os, signal, sys
import main
replace = os.replace
def killing(source, target):
    replace(source, target)
    if {name!r} in os.path.basename(target):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
sys.exit(main.main(sys.argv[1:]))
"""


def killed_after(name, *arguments):
    """main.py, killed by SIGKILL as soon as a file with `name` in its name exists."""
    status, _, err = call(*arguments, program=("-c", _KILLED.format(name=name)))
    assert status == -signal.SIGKILL, err


def wait_for(condition, process, seconds=90):
    """Wait until the condition holds, while the process runs."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < until
        time.sleep(0.005)


def checkpoints(session):
    return sorted(path.name for path in (session / "checkpoint").glob("*.ckpt"))


def error_line(err):
    """The one line of the error, without warnings; there must be no traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1, err
    return lines[0]
