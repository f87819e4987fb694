"""The table on the terminal and the dated report in benchmarks/reports/."""

import datetime
import sys
from pathlib import Path

import torch
from prettytable import PrettyTable

from benchmarks.runs import processor
from benchmarks.timing import ONCE, Row
from lib.runtime.device import describe_device
from lib.session import provenance

REPORTS = Path(__file__).resolve().parent / "reports"
HEADINGS = ["what", "ours", "textbook", "limit", "faster than textbook", "of the limit's time", "memory", "note"]


def cells(row: Row) -> list[str]:
    return [
        row.what,
        _time(row.ours),
        _time(row.textbook),
        _time(row.limit),
        "" if row.speedup is None else f"{row.speedup:.2f} x",
        "" if row.of_limit is None else f"{row.of_limit:.2f} x",
        "" if row.memory is None else f"{row.memory / 2**20:.0f} MiB",
        row.note,
    ]


def _time(seconds) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def table(rows: list[Row]) -> str:
    shown = PrettyTable(HEADINGS)
    shown.align = "l"
    shown.add_rows([cells(row) for row in rows])
    return shown.get_string()


def free_path(suffix: str = "") -> Path:
    """A new file for a report, named after the day; the second of a day gets a number."""
    REPORTS.mkdir(exist_ok=True)
    stem = datetime.date.today().isoformat() + suffix
    path, number = REPORTS / f"{stem}.md", 1
    while path.exists():
        number += 1
        path = REPORTS / f"{stem}-{number}.md"
    return path


def heading(title: str, command: str, device: torch.device, note: str = "") -> list[str]:
    """The head of a report: date, command, device and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    lines = [
        f"# {title}, {datetime.date.today().isoformat()}",
        "",
        f"- command: `{' '.join([command, *sys.argv[1:]])}`",
        f"- device: {describe_device(device)}; processor: {processor()}",
        f"- versions: {versions}",
        f"- commit: {provenance.git_revision()}",
    ]
    return [*lines, *([f"- {note}"] if note else []), ""]


def write(rows: list[Row], device: torch.device, repeats: int) -> Path:
    """Write a Markdown report named after the day. Returns its path."""
    path = free_path()
    note = f"medians over {repeats} turns of a row's contenders or a multiple, unless a note says {ONCE}; memory once"
    lines = [
        *heading("Benchmarks", "python3 -m benchmarks", device, note),
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
