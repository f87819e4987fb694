"""Runs at a budget, stored in one JSON file: stored runs are not repeated, and the table is made from the file alone.

The budget is the process's processor seconds of training. Other load on the machine changes them little, and with one
thread on a quiet machine they equal wall-clock seconds.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Optional

from datasets.files.cache import locked
from lib.runtime.atomic import replace_text

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "benchmarks" / "reports"
BESIDE = 60
"""Seconds of a run besides its budget, in the estimate of --dry-run."""
KINDS = [
    ("embedding", "plain"), ("embedding", "whitened"), ("backbone", "plain"), ("backbone", "whitened"),
]  # fmt: skip
NAMES = {
    "quick": "AND, configs/quick.yaml",
    "instance": "AND, configs/quick.yaml, round 0 alone",
    "paper": "AND, configs/base.yaml (the paper's recipe) cut to the time",
    "simclr-whitenet": "SimCLR (lightly) on the network of configs/quick.yaml",
    "simclr": "SimCLR (lightly)",
    "byol": "BYOL (lightly)",
    "moco": "MoCo v2 (lightly)",
    "fastsiam": "FastSiam (lightly)",
    "untrained": "untrained network of configs/quick.yaml",
    "pixels": "pixels",
}
"""Names of the variants in the table, in its order."""
LEVELS = {"first layer": "the fixed first layer of configs/quick.yaml alone, means over 4 x 4 fields"}
"""Further levels of `untrained`, each a row of its own."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data: a file in benchmarks/images, without its ending.
        variant: of `NAMES`.
        seconds: processor seconds of training; 0 where nothing is trained, None for no limit.
        views: augmented views of an image; None for no limit.
        rate: learning rate of a rival.
    """

    data: str
    variant: str
    seconds: Optional[float]
    views: Optional[float]
    seed: int
    rate: Optional[float] = None

    def __str__(self) -> str:
        budget = f"{self.seconds:g} s" if self.views is None else f"{self.views:g} views an image"
        rate = "" if self.rate is None else f", rate {self.rate:g}"
        return f"{self.data}, {self.variant}, {budget}{rate}, seed {self.seed}"


class Store:
    """The results in a JSON file, by cell. The file is written whole after every run, with what other processes have
    added to it in the meantime."""

    def __init__(self, path: Path):
        self.path = path
        self.results = self._read()

    def _read(self) -> dict[Cell, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            records = json.loads(self.path.read_text(encoding="utf-8"))["runs"]
            return {_cell_of(record): record for record in records}
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{self.path}: not what a benchmark keeps there ({error}); move it away") from None

    def add(self, record: dict[str, Any]) -> None:
        with locked(self.path):
            self.results = {**self._read(), _cell_of(record): record}
            # one line for each run, so that versions can be compared
            lines = ",\n".join(json.dumps(each) for each in self.results.values())
            replace_text(self.path, f'{{"runs": [\n{lines}\n]}}\n')


def _cell_of(record: dict[str, Any]) -> Cell:
    return Cell(**{field.name: record[field.name] for field in dataclasses.fields(Cell)})


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []  # not Linux
    return names[0] if names else platform.processor() or platform.machine()


def marks(machines: Iterable[str]) -> dict[str, str]:
    """What stands behind the name of each machine and behind its seconds: a number, or nothing if there is but one."""
    names = sorted(set(machines))
    return {name: f" [{number}]" if len(names) > 1 else "" for number, name in enumerate(names, 1)}


def seconds_by_machine(seconds: Iterable[tuple[str, float]], marked: dict[str, str], form: str) -> str:
    """Mean seconds on each machine, since those of several cannot be compared.

    Args:
        seconds: machine and seconds of each run.
        marked: from `marks`.
        form: format of a number, such as `.0f`.
    """
    found: dict[str, list[float]] = {}
    for machine, value in seconds:
        found.setdefault(machine, []).append(value)
    return ", ".join(f"{mean(found[machine]):{form}}{mark}" for machine, mark in marked.items() if machine in found)


def top1(record: dict[str, Any], level: str, kind: str, k: int) -> Optional[float]:
    """kNN top-1 in %, if it was measured."""
    return record["accuracies"].get(level, {}).get(kind, {}).get(str(k))


def best(record: dict[str, Any]) -> float:
    """The highest kNN top-1 in % of all kinds of features and both K."""
    return max(value for level in record["accuracies"].values() for kind in level.values() for value in kind.values())


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments that all benchmarks at a budget share. `name` is that of the report."""
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many seeds (default: 1)")
    parser.add_argument("--data-root", help="CIFAR-10 as folders train/ and test/ with a folder a class")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default: 1)")
    parser.add_argument("--report", type=Path, default=REPORTS / f"{name}.json", help="results; the table beside it")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing and how long it takes")


def work(given: argparse.Namespace, cells_of: Callable[[Store], Iterable[Cell]], title: str) -> int:
    """Run the missing cells one after the other, and write the table after each. Returns an exit status.

    Args:
        cells_of: the wanted cells; called again after every run, since its result may decide the next ones.
        title: of the table.
    """
    store, failed = Store(given.report), set()
    table = given.report.with_suffix(".md")

    def missing() -> list[Cell]:
        return [cell for cell in cells_of(store) if cell not in store.results and cell not in failed]

    if given.dry_run:
        cells = missing()
        for cell in cells:
            print(cell)
        hours = sum((cell.seconds or 0) + BESIDE for cell in cells) / 3600
        unknown = " and those with a budget in views" if any(cell.views for cell in cells) else ""
        print(f"{len(cells)} runs missing, about {hours:.1f} hours of processor time{unknown}")
        return 0
    while True:
        cells = missing()
        if not cells:
            break
        print(f"{datetime.datetime.now():%H:%M:%S} {cells[0]} ({len(cells)} to do)", flush=True)
        record = _run(cells[0], given)
        if record is None:
            failed.add(cells[0])
            print(f"failed: {cells[0]}; the others continue", file=sys.stderr, flush=True)
            continue
        store.add(record)
        table.write_text(report(store, title), encoding="utf-8")
        print(f"         best {best(record):.2f} %, {record['train_seconds']:.0f} s", flush=True)
    if store.results:
        table.write_text(report(store, title), encoding="utf-8")
        print(f"{table}: {len(store.results)} runs")
    return 1 if failed else 0


def _run(cell: Cell, given: argparse.Namespace) -> Optional[dict[str, Any]]:
    """The result of a run in a process of its own; None if it failed, after it printed why."""
    threads = str(given.threads)
    command = [sys.executable, "-m", "benchmarks.contender", json.dumps(dataclasses.asdict(cell))]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command += [str(result), "--threads", threads]
        command += [] if given.data_root is None else ["--data-root", str(Path(given.data_root).resolve())]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if status or not result.is_file():
            return None
        today = datetime.date.today().isoformat()
        return {
            **json.loads(result.read_text(encoding="utf-8")),
            "date": today,
            "machine": f"{processor()}, {os.cpu_count()} cores",
        }


def exit_with(main: Callable[[], int]) -> None:
    """Run a benchmark's main and exit with its status. Ctrl-C discards only the run in progress."""
    try:
        status = main()
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, and the same command makes the others", file=sys.stderr)
        status = 130
    except Exception as error:
        from lib.errors import UserError, one_line

        if not isinstance(error, UserError):
            raise
        print(one_line(error), file=sys.stderr)
        status = 2
    raise SystemExit(status)


def report(store: Store, title: str) -> str:
    """The tables in Markdown, one for each data set and budget."""
    results = list(store.results.values())
    marked = marks(each["machine"] for each in results)
    lines = [f"# {title}", "", *_about(results, marked), ""]
    for data in dict.fromkeys(each["data"] for each in results):
        of_data = [each for each in results if each["data"] == data]
        still = [each for each in of_data if each["seconds"] == 0]
        lines += [f"## {data}", ""]
        budgets = {(each["seconds"], each["views"]) for each in of_data if each["seconds"] != 0}
        for seconds, views in sorted(budgets, key=lambda pair: (pair[1] is not None, pair[0] or pair[1])):
            budget = f"{seconds / 60:g} minutes" if views is None else f"{views:g} views an image"
            here = [each for each in of_data if (each["seconds"], each["views"]) == (seconds, views)]
            lines += [f"### {budget}", "", *_table(here, marked), ""]
        if still:
            lines += ["### without training", "", *_table(still, marked), ""]
    return "\n".join(lines)


def _about(results: list[dict[str, Any]], marked: dict[str, str]) -> list[str]:
    def each(name: str) -> str:
        return ", ".join(sorted({str(result[name]) for result in results}))

    loads = [load for result in results for load in result["load"]]
    return [
        "kNN top-1 in % on all test images, K = 20 / K = 200, sigma 0.1, training features recomputed; with several "
        "seeds their mean, and ± the half width of the 95 % interval of the mean (Student's t). `embedding`: the "
        "network's output; `backbone`: the input of its last layer, for the rivals that of their heads; whitened as by "
        "--whiten. Views: how many augmented versions of each training image were seen. A budget is processor seconds "
        "of training, with augmentation, discovery and checkpoints. It does not include the start, to which the fit of "
        "the first layer belongs and, for AND, the pass that fills the bank; nor the last evaluation. The rivals have "
        "the augmentation of lightly's examples. Their learning rate is that of the best figure on the test images for "
        "the first seed; where a row names one rate, it was chosen in the shortest budget.",
        "",
        f"- machine: {'; '.join(name + mark for name, mark in marked.items())}; threads: {each('threads')}; "
        f"load average {min(loads):.1f} to {max(loads):.1f}",
        f"- dates: {each('date')}; commits: {each('commit')}; PyTorch {each('torch')}",
    ]


def _table(results: list[dict[str, Any]], marked: dict[str, str]) -> list[str]:
    """The table of one data set and budget."""
    heads = ["what", "n", "seconds", "views", "embedding", "whitened", "backbone", "whitened"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for variant, name in NAMES.items():
        runs = [each for each in results if each["variant"] == variant]
        if not runs:
            continue
        chosen, note = _best_rate(runs)
        if variant == "pixels":
            cells = ["", "", _cell(chosen, "pixels", "plain"), _cell(chosen, "pixels", "whitened")]
            lines.append(_row("pixels, centred; whitened", chosen, cells, marked))
            continue
        lines.append(_row(name + note, chosen, [_cell(chosen, *kind) for kind in KINDS], marked))
        for level, told in LEVELS.items():
            if any(level in each["accuracies"] for each in chosen):
                cells = ["", "", _cell(chosen, level, "plain"), _cell(chosen, level, "whitened")]
                lines.append(_row(told, chosen, cells, marked))
    return lines


def best_rate(results: Iterable[dict[str, Any]]) -> float:
    """The learning rate of the best run of the first seed."""
    results = list(results)
    first = min(each["seed"] for each in results)
    return max((each for each in results if each["seed"] == first), key=best)["rate"]


def _best_rate(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The runs at the best rate, and a note of all rates."""
    rates = sorted({each["rate"] for each in runs if each["rate"] is not None})
    if not rates:
        return runs, ""
    chosen = best_rate(runs)
    note = f", rate {chosen:g}" + (f" of {', '.join(f'{rate:g}' for rate in rates)}" if len(rates) > 1 else "")
    return [each for each in runs if each["rate"] == chosen], note


def _row(name: str, runs: list[dict[str, Any]], cells: list[str], marked: dict[str, str]) -> str:
    seconds = seconds_by_machine(((each["machine"], each["train_seconds"]) for each in runs), marked, ".0f")
    views = mean(each["views_done"] for each in runs)
    return "| " + " | ".join([name, str(len(runs)), seconds, f"{views:.1f}", *cells]) + " |"


def _cell(runs: list[dict[str, Any]], level: str, kind: str) -> str:
    parts = []
    for k in (20, 200):
        values = [value for value in (top1(each, level, kind, k) for each in runs) if value is not None]
        if not values:
            return ""
        parts.append(f"{mean(values):.1f}{half_width(values)}")
    return " / ".join(parts)


def half_width(values: list[float]) -> str:
    """` ± ` the half width of the 95 % interval of the mean; empty for one value."""
    from benchmarks.paper.statistics import mean_of  # loads SciPy

    found = mean_of(values)
    return "" if found is None or found.interval is None else f" ± {found.interval[1] - found.mean:.1f}"
