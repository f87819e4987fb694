"""Kill runs at random moments, resume them, and compare with runs that were never stopped.

    python3 -m benchmarks.kill_campaign --kills 200            # some 20 minutes on one core
    python3 -m benchmarks.kill_campaign --kills 200 --fresh    # each process loads PyTorch by itself: twice as long

A run of a few seconds on scikit-learn's digits, saved every other step, is killed with SIGKILL and resumed until it
finishes. Every third kill waits for a checkpoint write. Then weights, optimiser, bank, anchors, neighbours, accuracies
and metrics are compared, bit for bit, with those of the run that was not stopped. The runs alternate between two ways
of training: augmentation of whole batches in one process; and DataLoader workers, with gradients of two batches in a
step. Exit status 1 if anything differs.

The processes are forked from this one, which has loaded PyTorch and started no threads, so that most of their time is
training; with --fresh they are started as a user starts them.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Optional, Union

import torch

import lib.commands.train  # noqa: F401  for the forked processes
from benchmarks.same_run import differences
from main import main as run_main

ROOT = Path(__file__).resolve().parents[1]
_RUN = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--network", "resnet18", "--gpus", "cpu",
    "--precision", "fp32",
    "--limit-train", "96", "--limit-test", "40", "--batch-size", "16", "--low-dim", "16", "--max-round", "3",
    "--max-epoch", "2", "--save-every", "2", "--no-log-tfb",
]  # fmt: skip
_WAYS = {
    "by the batch": ["--optimizer", "sgd", "--base-lr", "0.01"],
    "in workers": ["--augment-on", "workers", "--workers-num", "2", "--iter-size", "2", "--batch-size", "8"],
}
_LONGEST = 4.0  # seconds of training before a kill
_PATIENCE = 300.0  # seconds after which a run counts as hanging


_Process = Union["_Forked", subprocess.Popen]


class Campaign:
    """Kills runs, resumes them, and compares the results.

    Args:
        folder: for the sessions; a finished session without differences is removed.
        seed: of the random moments.
        fresh: whether each process is a new interpreter.
    """

    def __init__(self, folder: Path, seed: int, fresh: bool = False):
        self._folder, self._random, self._fresh = folder, random.Random(seed), fresh
        self.count: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, kills: int) -> None:
        """Kill `kills` times, and finish the run that was killed last."""
        for way, arguments in _WAYS.items():
            self._finish(self._start([*_RUN, *arguments, "--session", way.replace(" ", "-")]))
        number = 0
        while self.count["kills"] < kills:
            way = list(_WAYS)[number % len(_WAYS)]
            self._one_run(self._folder / f"run-{number}", way, kills)
            number += 1
            print(f"{number} runs, {self.count['kills']} kills, {len(self.failures)} failures", flush=True)

    def _one_run(self, session: Path, way: str, kills: int) -> None:
        anew = [*_RUN, *_WAYS[way], "--session", session.name]
        arguments, killed = anew, 0
        while True:
            process = self._start(arguments)
            if self.count["kills"] >= kills or not self._kill(process, session):
                self._finish(process)
                break
            killed += 1
            if any((session / "checkpoint").glob("*.ckpt")):
                arguments = ["--resume", self._random.choice([str(session), "last"])]
            else:  # killed before the first checkpoint
                self.count["before the first checkpoint"] += 1
                shutil.rmtree(session, ignore_errors=True)
                arguments = anew
        found = differences(self._folder / way.replace(" ", "-"), session)
        self.count["runs compared"] += 1
        self.count[f"runs compared, {way}"] += 1
        if found:
            self.failures.append(f"{session.name} ({way}, killed {killed} times): {'; '.join(found[:5])}")
        else:
            shutil.rmtree(session)

    def _start(self, arguments: list[str]) -> _Process:
        # read if the run fails
        self._said = open(self._folder / "said.txt", "w+b")  # noqa: SIM115
        arguments = [*arguments, "--sess-dir", str(self._folder), "--brief"]
        if not self._fresh:
            return _Forked(arguments, self._said.fileno())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "main.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._said, stderr=self._said)

    def _finish(self, process: _Process) -> None:
        status = process.wait(_PATIENCE)
        self._said.seek(0)
        if status != 0:
            raise SystemExit(f"a run failed with status {status}: {self._said.read().decode(errors='replace')}")
        self._said.close()

    def _kill(self, process: _Process, session: Path) -> bool:
        """Kill the run at a random moment of its training; False if it had ended before."""
        lock, checkpoints = session / "session.lock", session / "checkpoint"
        while not (lock.exists() and f'"pid": {process.pid}' in lock.read_text(errors="replace")):
            if process.poll() is not None:
                return False
            time.sleep(0.005)
        until = time.monotonic() + self._random.uniform(0, _LONGEST)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.002)
        if self.count["kills"] % 3 == 0:
            while process.poll() is None and not any(checkpoints.glob("*.tmp")):
                time.sleep(0.001)
            time.sleep(self._random.uniform(0, 0.1))
        if process.poll() is not None:
            return False
        process.kill()
        if process.wait() == 0:
            return False
        self._said.close()
        self.count["kills"] += 1
        if any(checkpoints.glob("*.tmp")):
            self.count["while a checkpoint was being written"] += 1
        return True


class _Forked:
    """The part of subprocess.Popen's interface used here, for main.py forked from this process with its imports."""

    def __init__(self, arguments: list[str], output: int):
        self.returncode: Optional[int] = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.chdir(ROOT)
                status = run_main(arguments)
                sys.stdout.flush()
            finally:
                os._exit(status)

    def poll(self) -> Optional[int]:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = _PATIENCE) -> int:
        """Wait for the process to end; returns its exit status."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} does not end")
            time.sleep(0.005)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


def main() -> int:
    """Run a campaign and print its results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), wanted.seed, wanted.fresh)
        campaign.run(wanted.kills)
    for name, count in campaign.count.items():
        print(f"{name}: {count}")
    for failure in campaign.failures:
        print(f"DIFFERENT: {failure}")
    print(f"different: {len(campaign.failures)}; {time.monotonic() - started:.0f} s")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
