"""The cost of splitting a run: the same training in one process with all threads, and in a process for each thread."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.setting import Setting
from benchmarks.timing import Row
from lib.runtime.device import has_bf16

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 768
ONE_THREAD = "one thread each; the limit is one process with as many"
SHARED_IMAGES = (50_000, 200_000)
RUN = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--network", "resnet18", "--size", "32"]
RUN += ["--batch-size", "128", "--limit-train", str(IMAGES), "--limit-test", "10", "--max-round", "1"]
RUN += ["--max-epoch", "3", "--gpus", "cpu"]


def split_over_processes(setting: Setting) -> list[Row]:
    """Seconds of a training step, ResNet18 on digits at 32 pixels; the limit is one process with all threads."""
    if torch.get_num_threads() == 1:
        return []
    kinds = ["fp32", "bf16"] if has_bf16(torch.device("cpu")) else ["fp32"]
    return [row for kind in kinds for row in _training_steps(setting.repeats, kind)]


def _training_steps(repeats: int, kind: str) -> list[Row]:
    processes = torch.get_num_threads()
    ways = {
        "batch norm over all": (processes, ["--sync-bn"]),
        "batch norm by process": (processes, ["--no-sync-bn"]),
        "one process": (1, []),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (count, options) in ways.items():
            seconds[way].append(_seconds_per_step(count, [*options, "--precision", kind]))
    usual = {way: median(values) for way, values in seconds.items()}
    return [
        Row(f"a step in {processes} processes, {way}, {kind}", usual[way], limit=usual["one process"], note=ONE_THREAD)
        for way in ("batch norm over all", "batch norm by process")
    ]


def shards(setting: Setting) -> list[Row]:
    """Loss and discovery over a bank that several processes share; the limit is one process with all threads."""
    processes = torch.get_num_threads()
    if processes == 1:
        return []
    rows = []
    for images in SHARED_IMAGES:
        turns: dict[int, list[dict[str, float]]] = {processes: [], 1: []}
        for _ in range(setting.repeats):
            for count, found in turns.items():
                found.append(_shared_bank(count, images, setting.batch))
        several, one = ({what: median(turn[what] for turn in found) for what in found[0]} for found in turns.values())
        rows += [
            Row(f"{what}, N = {images:,}, {processes} processes", several[what], limit=one[what], note=ONE_THREAD)
            for what in one
        ]
    return rows


def _shared_bank(processes: int, images: int, batch: int) -> dict[str, float]:
    done = run(processes, ["-m", "benchmarks.shared_bank"], [str(images), str(batch)])
    return json.loads(done.stdout)


def _seconds_per_step(processes: int, options: list[str]) -> float:
    """Median over the epochs after the first, from the run's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        run(processes, ["main.py"], [*RUN, *options, "--sess-dir", folder, "--session", "run", "--brief"])
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return median(128 / json.loads(line)["images_per_second"] for line in lines[1:])


def run(processes: int, program: list[str], arguments: list[str]) -> subprocess.CompletedProcess:
    """Run a program in `processes` processes, which share the cores of this machine.

    Raises:
        RuntimeError: it failed.
    """
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={_free_port()}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *program, *arguments]
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
