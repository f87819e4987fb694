"""Compare criteria for the number of clusters, print a table and write a dated report.

python3 -m benchmarks.cluster_number --sessions FOLDER                    # trains 35 networks on digits first
python3 -m benchmarks.cluster_number --sessions FOLDER --cifar10 FOLDER   # and two on CIFAR-10
python3 -m benchmarks.cluster_number --sessions FOLDER --only linkage eigengap    # two criteria
"""

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.cluster_number.criteria import criteria
from benchmarks.cluster_number.features import Case, cases
from benchmarks.report import free_path, heading

LARGE = 50_000


def main() -> None:
    known = criteria()
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.cluster_number", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sessions", required=True, type=Path, help="folder of the trained networks; missing ones are trained into it"
    )
    parser.add_argument("--cifar10", help="folder of CIFAR-10, as for --data-root; without it CIFAR-10 is left out")
    parser.add_argument("--only", nargs="+", choices=list(known), help="the criteria to compare (default: all)")
    parser.add_argument("--no-report", action="store_true", help="print only")
    arguments = parser.parse_args()
    chosen = {name: known[name] for name in arguments.only or known}
    found: list[tuple[Case, dict[str, int]]] = []
    seconds = dict.fromkeys(chosen, 0.0)
    for case in cases(arguments.sessions, arguments.cifar10):
        answers = {}
        for name, criterion in chosen.items():
            started = time.perf_counter()
            answers[name] = criterion(case.features, 0)
            seconds[name] += time.perf_counter() - started
        found.append((case, answers))
        print(f"{case.name}: " + ", ".join(f"{name} {answer}" for name, answer in answers.items()), flush=True)
    lines = [*_summary(found, list(chosen)), "", *_details(found, list(chosen)), "", *_times(chosen, seconds)]
    print("\n".join(lines))
    if not arguments.no_report:
        path = free_path("-cluster-number")
        head = heading("Number of clusters", "python3 -m benchmarks.cluster_number", torch.device("cpu"))
        path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
        print(f"report: {path}")


def _summary(found: list[tuple[Case, dict[str, int]]], names: list[str]) -> list[str]:
    """For each group: how often the number is within one of the truth, how often exact, and the mean error."""
    lines = ["| features | measure | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for group in dict.fromkeys(case.group for case, _ in found):
        errors = {name: [abs(row[name] - case.classes) for case, row in found if case.group == group] for name in names}
        count = len(errors[names[0]])
        for measure, cell in (
            (f"within one, of {count}", lambda each: str(sum(error <= 1 for error in each))),
            ("right", lambda each: str(sum(error == 0 for error in each))),
            ("mean error", lambda each: f"{sum(each) / len(each):.2f}"),
        ):
            lines.append(f"| {group} | {measure} | " + " | ".join(cell(errors[name]) for name in names) + " |")
    return lines


def _details(found: list[tuple[Case, dict[str, int]]], names: list[str]) -> list[str]:
    lines = ["| features | images | classes | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for case, row in found:
        cells = " | ".join(str(row[name]) for name in names)
        lines.append(f"| {case.name} | {len(case.features):,} | {case.classes} | {cells} |")
    return lines


def _times(chosen: dict, seconds: dict[str, float]) -> list[str]:
    lines = ["Seconds over all of these: " + ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()) + "."]
    if "linkage" in chosen:
        rows = F.normalize(torch.randn(LARGE, 128, generator=torch.Generator().manual_seed(0)), dim=1)
        started = time.perf_counter()
        chosen["linkage"](rows, 0)
        spent, threads = time.perf_counter() - started, torch.get_num_threads()
        lines.append(f"linkage with {LARGE:,} random features of length 128 took {spent:.0f} s ({threads} threads).")
    return lines


if __name__ == "__main__":
    main()
