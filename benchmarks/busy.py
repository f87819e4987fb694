"""How much other programs on the same cores slow a run, by its number of threads."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.processes import run
from benchmarks.setting import Setting
from benchmarks.timing import Row
from lib.runtime.threads import cores

BATCH = 128
RUN = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--batch-size", str(BATCH), "--limit-train", "256"]
RUN += ["--network", "resnet18", "--precision", "auto", "--limit-test", "10", "--max-round", "1", "--max-epoch", "2"]
RUN += ["--gpus", "cpu", "--no-report", "--brief"]


def busy_machine(setting: Setting) -> list[Row]:
    """Seconds of a training step, ResNet18 on digits, with --threads auto; textbook: one thread for each core."""
    everything = str(cores())
    rows = []
    for others, beside in ((0, "no other process of ours"), (1, "one busy process")):
        seconds: dict[str, list[float]] = {"auto": [], everything: [], "1": []}
        chosen = []
        for _ in range(setting.repeats):
            for threads, spent in seconds.items():
                with busy_processes(others):
                    step, number = _step(threads)
                spent.append(step)
                if threads == "auto":
                    chosen.append(number)
        usual = {threads: median(spent) for threads, spent in seconds.items()}
        note = f"auto took {', '.join(chosen)}; one thread: {usual['1']:.2f} s; images/s: " + ", ".join(
            f"{threads} {BATCH / spent:.0f}" for threads, spent in usual.items()
        )
        rows.append(Row(f"a step beside {beside}, digits", usual["auto"], usual[everything], note=note))
    return rows


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes computing while the context is entered."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


def _step(threads: str) -> tuple[float, str]:
    """Median seconds of a step over the epochs after the first, from the run's metrics, and the threads in its log."""
    with tempfile.TemporaryDirectory() as folder:
        run(1, ["main.py"], [*RUN, "--threads", threads, "--sess-dir", folder, "--session", "run"])
        session = Path(folder) / "run"
        epochs = [json.loads(line) for line in (session / "metrics.jsonl").read_text().splitlines()]
        log = (session / "log.txt").read_text()
    number = next(line.split()[line.split().index("threads") + 1] for line in log.splitlines() if " threads " in line)
    return median(BATCH / epoch["images_per_second"] for epoch in epochs[1:]), number
