"""Make the runs of the paper's tables and figures, and report their results.

    python3 -m benchmarks.paper --list
    python3 -m benchmarks.paper table6 figure4 --scale digits --seeds 5
    python3 -m benchmarks.paper all --scale cifar-small --seeds 3 --data-root ~/cifar10 --dry-run

A run is one of main.py, in SESS_DIR/SCALE/VARIANT-sSEED. Finished runs are used again, interrupted ones resumed; a
variant that two items need is run once. Ctrl-C saves and stops; the same command continues. After each item, and at
the end, the finished runs are added to the report.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from benchmarks.paper import scales
from benchmarks.paper.items import NAMES, Plan
from benchmarks.paper.runs import BEGUN, FINISHED, MISSING, NO_DATA, Call, Maker, Result, Run
from benchmarks.paper.scales import ROOT, Scale
from lib.errors import UserError, one_line

REPORTS = ROOT / "benchmarks" / "reports"


class Queue:
    """The runs of a call in the order in which they are made: by item, then by seed, then by variant.

    Args:
        plan: of the scale.
        items: names.
        seeds: how many, from 0.
        call: what is the same for all runs.
    """

    def __init__(self, plan: Plan, items: Sequence[str], seeds: int, call: Call):
        self.plan, self.call = plan, call
        self.by_item: dict[str, list[Run]] = {}
        known: set[str] = set()
        for item in items:
            variants = plan.variants_of(item)
            runs = [Run(plan.scale, variant, seed, call) for seed in range(seeds) for variant in variants]
            self.by_item[item] = [run for run in runs if run.name not in known]
            known |= {run.name for run in runs}
        self.runs = [run for runs in self.by_item.values() for run in runs]
        self.states = {run.name: run.state for run in self.runs}

    @property
    def left(self) -> list[Run]:
        """Runs still to be made."""
        return [run for run in self.runs if self.states[run.name] in (MISSING, BEGUN)]

    def estimate(self, runs: Sequence[Run]) -> str:
        """Training time of these runs, estimated from finished epochs; unknown where no similar run has any."""
        total, unknown = 0.0, 0
        for run in runs:
            epoch = self._seconds_an_epoch(run)
            total += (epoch or 0.0) * (run.epochs - run.epochs_done())
            unknown += epoch is None
        if unknown == 0:
            return _time(total)
        return "time unknown" if unknown == len(runs) else f"{_time(total)} and {unknown} of unknown time"

    def _seconds_an_epoch(self, run: Run) -> Optional[float]:
        """Measured on runs of the same variant; else on runs with the same network and images."""
        for alike in (lambda other: other.variant.name == run.variant.name, lambda other: _kind(other) == _kind(run)):
            others = [other for other in self.runs if alike(other) and other.epochs_done()]
            if others:
                return sum(other.seconds() for other in others) / sum(other.epochs_done() for other in others)
        return None

    def results(self) -> dict:
        """Results of all finished runs of the scale by variant and seed, not only of the requested items and seeds.

        A session of another recipe or with a damaged file is left out, and a line says so.
        """
        found: dict[str, dict[int, Result]] = {}
        for variant in self.plan.variants.values():
            found[variant.name] = {}
            for seed in self._seeds(variant.name):
                run = Run(self.plan.scale, variant, seed, self.call)
                try:
                    if run.state == FINISHED:
                        found[variant.name][seed] = run.result()
                except (UserError, ValueError) as error:
                    print(f"left out: {one_line(error)}")
        return found

    def _seeds(self, variant: str) -> list[int]:
        folders = (self.call.sess_dir / self.plan.scale.name).glob(f"{variant}-s*")
        ends = (folder.name[len(variant) + 2 :] for folder in folders)
        return sorted(int(end) for end in ends if end.isdecimal())


def _kind(run: Run) -> tuple:
    options = run.options
    return options.network, options.dataset, options.size, options.limit_train, options.batch_size


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status: 0, 1 if a run failed, 2 for a mistake, 128 + signal if stopped."""
    parser = _parser()
    known, extra = parser.parse_known_args(arguments)
    try:
        if known.list:
            _list(Plan(Scale.of(known.scale)))
            return 0
        unknown = [name for name in known.items if name not in (*NAMES, "all")]
        if unknown or not known.items:
            parser.error(f"no such item: {', '.join(unknown)}; --list names them" if unknown else "name items, or all")
        items = list(NAMES) if "all" in known.items else list(dict.fromkeys(known.items))
        call = Call(known.sess_dir, known.data_root, tuple(extra))
        call.check()
        queue = Queue(Plan(Scale.of(known.scale)), items, known.seeds, call)
        if known.dry_run:
            _dry_run(queue)
            return 0
        if known.report:
            print(f"report: {_report(queue, known.reports)}")
            return 0
        return _make(queue, known.reports)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.paper",
        description=first,
        epilog=f"{rest}\nOptions that are not listed here, such as --threads 1, are main.py's and go to every run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument(
        "--scale", default="digits", help=f"{', '.join(scales.NAMES)}, or a YAML file (default: digits)"
    )
    parser.add_argument("--seeds", type=_count, default=5, metavar="N", help="seeds 0 to N - 1 (default: 5)")
    parser.add_argument("--sess-dir", type=Path, default=Path("sessions", "paper"), help="default: sessions/paper")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of the data set, or with a folder of each data set's name"
    )
    parser.add_argument("--reports", type=Path, default=REPORTS, metavar="DIR", help="default: benchmarks/reports")
    parser.add_argument("--list", action="store_true", help="name the items with their runs, and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long, and stop")
    parser.add_argument("--report", action="store_true", help="write the report of what is finished, and stop")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1000, got {text!r}")
    return int(text)


def _list(plan: Plan) -> None:
    for name, item in plan.items.items():
        variants = ", ".join(variant.name for variant in plan.variants_of(name)) or "not at this scale"
        print(f"{name:10} {item.title} ({variants})")


def _dry_run(queue: Queue) -> None:
    for item, runs in queue.by_item.items():
        print(f"{item}: {queue.plan.items[item].title}")
        for run in runs:
            state = queue.states[run.name]
            line = f"  {run.name:24} {state:9}"
            if state in (MISSING, BEGUN):
                line += f" {run.epochs - run.epochs_done():5} epochs, {queue.estimate([run])}"
            if state == NO_DATA:
                line += f" {run.options.dataset}; once it is there: python3 main.py {' '.join(run.command())}"
            print(line)
    finished = sum(state == FINISHED for state in queue.states.values())
    left = queue.left
    print(f"{len(left)} of {len(queue.runs)} runs to make, {finished} finished; {queue.estimate(left)} of training")


def _make(queue: Queue, reports: Path) -> int:
    from benchmarks.paper.report import earlier

    earlier(queue.plan, reports)  # a damaged file is an error before the runs, not after them
    failures, place, total = [], 0, len(queue.left)
    without = [run.name for run in queue.runs if queue.states[run.name] == NO_DATA]
    if without:
        print(f"no data for {', '.join(without)}; --dry-run shows the commands")
    with Maker() as maker:
        for item, runs in queue.by_item.items():
            before = place
            for run in runs:
                if queue.states[run.name] not in (MISSING, BEGUN) or maker.stopped is not None:
                    continue
                place += 1
                head = f"[{place}/{total}] {item} {run.name}"
                failure = maker.make(run, lambda run=run, head=head: _progress(queue, run, head))
                queue.states[run.name] = run.state
                if maker.stopped is None and failure:
                    failures.append(run.name)
                _say(f"{head}: {failure}" if failure else f"{head}: {_summary(run)}; {_left(queue)}")
            if maker.stopped is not None:
                break
            if place > before:
                _report(queue, reports)
    print(f"report: {_report(queue, reports)}")
    if maker.stopped is not None:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + maker.stopped
    if failures:
        print(f"error: failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


def _summary(run: Run) -> str:
    result = run.result()
    return f"{100 * result.knn:.2f} %, {_time(result.seconds)}"


def _left(queue: Queue) -> str:
    return f"{len(queue.left)} runs left, {queue.estimate(queue.left)}"


def _progress(queue: Queue, run: Run, head: str) -> None:
    """A progress line that overwrites itself, on a terminal only."""
    if sys.stdout.isatty():
        text = f"{head}: epoch {run.epochs_done()}/{run.epochs}; {_left(queue)}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:{width}}", end="", flush=True)


def _say(line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="")
    print(line, flush=True)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _report(queue: Queue, reports: Path) -> Path:
    from benchmarks.paper.report import update  # loads PyTorch

    path, changed = update(queue.plan, queue.results(), reports)
    for name in changed:
        print(f"left out: the report's runs of {name}, which were made with other options")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
