"""A run of main.py of a few seconds, on scikit-learn's digits, in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--precision", "fp32", "--limit-train", "40",
    "--limit-test", "30", "--batch-size", "8", "--low-dim", "16", "--max-round", "2", "--max-epoch", "2", "--optimizer",
    "sgd", "--base-lr", "0.01", "--momentum", "0", "--no-nesterov", "--save-every", "2", "--brief", "--no-log-tfb",
]  # fmt: skip
WORKERS = ["--augment-on", "workers", "--workers-num", "2", "--iter-size", "2"]


def start(*arguments, launcher=(), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "main.py", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": _hears_signals, **options}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, errors="surrogateescape", **options)


def _hears_signals():
    """Whoever runs the tests in the background or under nohup has them ignored, and what is ignored stays so."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def call(*arguments, **options):
    """(status, standard output, standard error)."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition, process, seconds=90):
    """Until the condition holds, while the process runs."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < until
        time.sleep(0.005)


def checkpoints(session):
    return sorted(path.name for path in (session / "checkpoint").glob("*.ckpt"))


def error_line(err):
    """The one line that an error is, without warnings; there must be no traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1, err
    return lines[0]
