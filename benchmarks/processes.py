"""What a run loses by being split: the same training in one process with all threads and in one process a thread."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import Row

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 768
RUN = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--size", "32", "--batch-size", "128"]
RUN += ["--limit-train", str(IMAGES), "--limit-test", "10", "--max-round", "1", "--max-epoch", "3", "--gpus", "cpu"]


def split_over_processes(repeats: int) -> list[Row]:
    """Seconds of a training step, ResNet18 on digits at 32 pixels; the limit is one process with all threads."""
    processes = torch.get_num_threads()
    if processes == 1:
        return []
    ways = {
        "batch norm over all": (processes, ["--sync-bn"]),
        "batch norm by process": (processes, ["--no-sync-bn"]),
        "one process": (1, []),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (count, options) in ways.items():
            seconds[way].append(_seconds_per_step(count, options))
    best = {way: min(values) for way, values in seconds.items()}
    return [
        Row(f"a step in {processes} processes with one thread each, {way}", best[way], limit=best["one process"])
        for way in ("batch norm over all", "batch norm by process")
    ]


def _seconds_per_step(processes: int, options: list[str]) -> float:
    """Of the fastest epoch, from the run's own metrics."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={_free_port()}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(launcher if processes > 1 else []), "main.py", *RUN, *options]
        command += ["--sess-dir", folder, "--session", "run", "--brief"]
        environment = dict(os.environ)
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return 128 / max(json.loads(line)["images_per_second"] for line in lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
