"""`--compare`: sessions side by side, from their text files alone and without PyTorch, in a moment."""

import datetime
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

from lib.config import OPTIONS, in_effect, value_text
from lib.errors import UserError
from lib.logger.console import duration
from lib.runtime.packages import has
from lib.session.metrics import percent_text
from lib.session.records import SessionRecord, result_text, result_words

KIND = "comparison"
WIDEST_CELL = 48
"""Characters of a cell on the terminal; longer paths are broken."""
_MARK = f'content="AND, Anchor Neighbourhood Discovery: {KIND}"'
WIDTH, HEIGHT = 64, 12
"""Characters and lines of a plot on the terminal."""

Table = tuple[list[str], list[list[str]]]
"""Column heads and rows."""

_ACCURACY_OPTIONS = ("dataset", "labels", "protocol", "knn_k", "knn_sigma", "limit_test")
"""Options that decide what an accuracy means."""
_LOSS_OPTIONS = ("npc_temperature", "ANs_size")
"""Options that decide what a loss means."""
_STARTS = {
    "code": "code",
    "device": "device",
    "precision": "computed in",
    "processes": "processes",
    "train_images": "training images",
    "test_images": "test images",
    "skipped_images": "images left out",
}
"""Entries of starts.jsonl that are compared, beside the options."""


class Comparison:
    """Sessions side by side.

    Args:
        records: at least two.

    Attributes:
        labels: the sessions' names if these differ, else their paths as given.
        letters: A, B, C ...
    """

    def __init__(self, records: Sequence[SessionRecord]):
        self.records = list(records)
        names = [record.name for record in records]
        paths = [str(record.folder.path) for record in records]
        self.labels = names if len(set(names)) == len(names) else paths
        self.letters = [_letter(index) for index in range(len(self.records))]

    def rows(self) -> Iterator[tuple[str, str, SessionRecord]]:
        """Letter, label and record of each session."""
        return zip(self.letters, self.labels, self.records)

    @property
    def notes(self) -> list[str]:
        """What limits the comparison of the figures: settings that differ, sessions that are unfinished."""
        notes = []
        for figures, options in (("accuracies", _ACCURACY_OPTIONS), ("losses", _LOSS_OPTIONS)):
            differing = [name for name in options if len({_shown(record, name) for record in self.records}) > 1]
            if differing:
                verb = "differs" if len(differing) == 1 else "differ"
                notes.append(f"{figures} are not comparable: {', '.join(differing)} {verb}")
        counts, images, contents = (
            {_started(record, key) for record in self.records} - {None}
            for key in ("train_images", "fingerprint", "contents")
        )
        if len(counts) > 1:
            notes.append("losses are not comparable: the numbers of training images differ, and chance is log N")
        elif len(images) > 1:
            notes.append("accuracies and losses are not comparable: the training images differ")
        elif len(contents) > 1:
            notes.append("accuracies and losses are not comparable: training images of the same names differ")
        unfinished = [letter for letter, _, record in self.rows() if not record.finished]
        if unfinished:
            notes.append(f"not finished: {', '.join(unfinished)}")
        return notes

    def tables(self) -> dict[str, Table]:
        """Every table by its title, in the order of reading."""
        return {
            "options and environment that differ": self.differences(),
            "results": self.results(),
            **self.by_round(),
        }

    def differences(self) -> Table:
        """A row for each option or entry of starts.jsonl that differs."""
        body = []
        names = [option.name for option in OPTIONS if option.kept]
        names += sorted({name for record in self.records for name in record.options} - set(names))
        for name in names:
            values = [_shown(record, name) for record in self.records]
            if len(set(values)) > 1:
                body.append([name, *values])
        known = {words: [_started(record, key) for record in self.records] for key, words in _STARTS.items()}
        versions = [_started(record, "versions") or {} for record in self.records]
        known.update({name: [own.get(name) for own in versions] for name in sorted(set().union(*versions))})
        for words, values in known.items():
            if len(set(values) - {None}) > 1:  # a session of an older version lacks the entry
                body.append([words, *map(_text, values)])
        return ["", *self.letters], body

    def results(self) -> Table:
        """The results of each session, a row for each figure."""
        body = [
            ["epochs completed", *(f"{len(record.epochs):,}" for record in self.records)],
            ["top-1, last", *(percent_text(record.latest("knn_top1")) for record in self.records)],
            ["top-1, best epoch", *(percent_text((_best(record) or {}).get("knn_top1")) for record in self.records)],
            ["its round and epoch", *(_where(_best(record)) for record in self.records)],
            ["top-1, recomputed", *(percent_text((record.final or {}).get("top1")) for record in self.records)],
            ["top-5, recomputed", *(percent_text((record.final or {}).get("top5")) for record in self.records)],
            ["consistent pairs, last", *(percent_text(_last(record, "consistency")) for record in self.records)],
            ["anchors, last", *(_number(_last(record, "anchors")) for record in self.records)],
            ["loss, last", *(_number(_last(record, "loss")) for record in self.records)],
            ["entropy, last", *(_number(record.latest("entropy")) for record in self.records)],
            [
                "kept their neighbour, last",
                *(percent_text(record.latest("neighbours_kept")) for record in self.records),
            ],
            ["cosine with the nearest, last", *(_number(record.latest("neighbour_cosine")) for record in self.records)],
            ["clusters, last", *(_clusters(record) for record in self.records)],
            *self._protocol_results(),
            ["training time", *(_time(record) for record in self.records)],
        ]
        return ["", *self.letters], [row for row in body if set(row[1:]) != {"-"}]

    def _protocol_results(self) -> list[list[str]]:
        """A row for each figure of the protocols that evaluated any session."""
        found = [record.results for record in self.records]
        return [
            [result_words(key), *(result_text(key, own[key]) if key in own else "-" for own in found)]
            for key in dict.fromkeys(key for own in found for key in own)
        ]

    def by_round(self) -> dict[str, Table]:
        """A table for each result of a round."""
        figures = {
            "top-1 at the end of each round": lambda entry: percent_text(entry.knn_last),
            "consistent pairs in each round": lambda entry: percent_text(entry.consistency),
            "loss at the end of each round": lambda entry: _number(entry.loss),
            "share that kept their neighbour in each round": lambda entry: percent_text(entry.neighbours_kept),
            "mean entropy at the end of each round": lambda entry: _number(entry.entropy),
        }
        rounds = [{entry.round: entry for entry in record.rounds} for record in self.records]
        numbers = sorted(set().union(*rounds))
        tables = {}
        for title, figure in figures.items():
            body = [[str(n), *(figure(own[n]) if n in own else "-" for own in rounds)] for n in numbers]
            if any(cell != "-" for row in body for cell in row[1:]):
                tables[title] = (["round", *self.letters], body)
        return tables

    def curve(self, index: int, key: str) -> list[tuple[int, float]]:
        """The points (epochs completed since the run began, figure) of one session."""
        record = self.records[index]
        return [(record.run_epoch(epoch), epoch[key]) for epoch in record.epochs if epoch.get(key) is not None]


def _letter(index: int) -> str:
    """A to Z, then AA, AB ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _shown(record: SessionRecord, name: str) -> str:
    known = {option.name for option in OPTIONS}
    if name not in known and name not in record.options:
        return "-"
    value = in_effect(name, record.value)
    return value_text(float(value) if isinstance(value, Fraction) else value)


def _started(record: SessionRecord, key: str) -> Any:
    """The value in the last line of starts.jsonl; None for a session of an older version."""
    return record.starts[-1].get(key) if record.starts else None


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _last(record: SessionRecord, key: str) -> Any:
    return record.epochs[-1][key] if record.epochs else None


def _best(record: SessionRecord) -> Optional[dict[str, Any]]:
    """The line of the best epoch, the earliest among equals; None if none was evaluated."""
    evaluated = [epoch for epoch in record.epochs if epoch["knn_top1"] is not None]
    return max(evaluated, key=lambda epoch: epoch["knn_top1"]) if evaluated else None


def _where(epoch: Optional[dict[str, Any]]) -> str:
    return "-" if epoch is None else f"{epoch['round']}, {epoch['epoch']}"


def _clusters(record: SessionRecord) -> str:
    sizes = record.latest("clusters")
    return _number(len(sizes)) if isinstance(sizes, list) else "-"


def _time(record: SessionRecord) -> str:
    return duration(sum(epoch["seconds"] for epoch in record.epochs)) if record.epochs else "-"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def text_plot(curves: Sequence[Sequence[tuple[float, float]]], percent: bool) -> str:
    """A plot in characters: the first curve of `A`, the next of `B`; `*` where several overlap. Empty without points.

    Args:
        curves: their (x, y).
        percent: y is a share of 1 and shown in per cent.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        return ""
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points))
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for index, curve in enumerate(curves):
        for x, y in curve:
            column = round((x - left) / ((right - left) or 1) * (WIDTH - 1))
            row = HEIGHT - 1 - round((y - low) / ((high - low) or 1) * (HEIGHT - 1))
            mark = chr(ord("A") + index % 26)
            cells[row][column] = mark if cells[row][column] in (" ", mark) else "*"
    ends = {HEIGHT - 1: _axis_text(low, percent)}
    if high > low:
        ends[0] = _axis_text(high, percent)
    margin = max(map(len, ends.values()))
    lines = [f"{ends.get(row, ''):>{margin}} |{''.join(line).rstrip()}" for row, line in enumerate(cells)]
    lines.append(" " * margin + " +" + "-" * WIDTH)
    first, last = f"{left:g}", f"{right:g} epochs"
    lines.append(" " * (margin + 2) + first + last.rjust(WIDTH - len(first)))
    return "\n".join(lines)


def _axis_text(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"


def compare(sessions: Sequence[str], page: Optional[str], folder: str) -> None:
    """Print the comparison and write it as a page.

    Args:
        sessions: the folders, at least two.
        page: path of the page, or None for a new file in `folder`.
        folder: the folder of sessions.

    Raises:
        UserError: one of them is not a session, or the page's path is taken or cannot be written.
    """
    comparison = Comparison([SessionRecord.read(Path(session), "--compare") for session in sessions])
    path, instead = _page_path(comparison, page, folder)
    if not has("jinja2") and page is not None:
        raise UserError("--compare-html: a page needs the package jinja2; pip install jinja2")
    try:
        print(as_text(comparison))
    finally:  # also if standard output is closed
        if has("jinja2"):
            _write(comparison, path)
    if has("jinja2"):
        print(f"\nas a page: {path}{' (replaces the earlier comparison)' if instead else ''}")
    else:
        print("\nno page: it needs the package jinja2 (pip install jinja2)")


def _write(comparison: Comparison, path: Path) -> None:
    from lib.report.template import write_page

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(as_page(comparison), path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; choose another path with --compare-html"
        ) from None


def _page_path(comparison: Comparison, page: Optional[str], folder: str) -> tuple[Path, bool]:
    """The path of the page, and whether it replaces an earlier comparison. No other file is ever replaced.

    Raises:
        UserError: another file has this path.
    """
    if page is None:
        names = "-".join(record.name for record in comparison.records)
        stem = f"compare-{names if len(names) <= 100 else f'{len(comparison.records)}-sessions'}"
        number, path = 1, Path(folder) / f"{stem}.html"
        while path.exists():
            number += 1
            path = Path(folder) / f"{stem}-{number}.html"
        return path, False
    path = Path(page)
    if not path.exists():
        return path, False
    if path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        return path, True
    raise UserError(f"--compare-html {page}: another file is there already; choose another path")


def as_text(comparison: Comparison) -> str:
    """The comparison as text for the terminal."""
    from prettytable import PrettyTable

    parts = [f"{letter}  {label}: {record.progress}" for letter, label, record in comparison.rows()]
    for note in comparison.notes:
        parts.append(f"note: {note}")
    for title, (head, body) in comparison.tables().items():
        table = PrettyTable(head)
        table.align = "r"
        table.max_width = WIDEST_CELL
        table.align[head[0]] = "l"
        for row in body:
            table.add_row(row)
        parts += ["", title, table.get_string() if body else "none"]
    has_accuracy = any(record.latest("knn_top1") is not None for record in comparison.records)
    first = ("top-1", "knn_top1", True) if has_accuracy else ("mean cosine with the nearest", "neighbour_cosine", False)
    for what, key, percent in (first, ("loss", "loss", False)):
        plot = text_plot([comparison.curve(index, key) for index in range(len(comparison.records))], percent)
        if plot:
            parts += ["", f"{what} over the epochs", plot]
    return "\n".join(parts)


def as_page(comparison: Comparison) -> str:
    """The comparison as HTML."""
    from lib.figures.charts import CSS_NAMES, dash, series
    from lib.report.template import render

    legend = [
        {"letter": letter, "label": label, "record": record, "colour": CSS_NAMES[series(index)], "dashes": dash(index)}
        for index, (letter, label, record) in enumerate(comparison.rows())
    ]
    return render(
        "compare.html",
        legend=legend,
        notes=comparison.notes,
        tables=[
            {"title": title[0].upper() + title[1:], "head": head, "body": body}
            for title, (head, body) in comparison.tables().items()
        ],
        charts=_charts(comparison),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )


def _charts(comparison: Comparison) -> list[tuple[str, Any]]:
    """Caption and figure of every curve that any session has."""
    charts = []
    for name, caption, key, keywords in (
        ("accuracy", "Top-1 accuracy", "knn_top1", {"percent": True}),
        ("loss", "Loss", "loss", {}),
        ("entropy", "Mean entropy", "entropy", {}),
        ("cosine", "Mean cosine with the nearest", "neighbour_cosine", {}),
        ("rate", "Learning rate", "lr", {"logarithmic": True}),
    ):
        points = [comparison.curve(index, key) for index in range(len(comparison.records))]
        charts.append((caption, _chart(name, caption, "epochs completed", comparison, points, **keywords)))
    points = [
        [(entry.round, entry.consistency) for entry in record.rounds if entry.consistency is not None]
        for record in comparison.records
    ]
    charts.append(
        ("Consistent pairs", _chart("consistency", "Consistent pairs", "round", comparison, points, percent=True))
    )
    return [(caption, chart) for caption, chart in charts if chart is not None]


def _chart(name: str, caption: str, across: str, comparison: Comparison, points: list, **keywords: Any) -> Any:
    from lib.figures.charts import Curve, curves

    lines = [
        Curve(label, [x for x, _ in own], [y for _, y in own], index)
        for index, (own, label) in enumerate(zip(points, comparison.labels))
    ]
    described = f"{caption} of {len(lines)} sessions; the table of results has the figures"
    return curves(name, described, across, caption.lower(), lines, **keywords)
