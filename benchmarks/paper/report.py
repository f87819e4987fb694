"""The results of the runs: a report in Markdown, the same as JSON, and a plot for each item."""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from benchmarks.paper.items import Column, Item, Measure, Plan, Statement
from benchmarks.paper.plot import plot
from benchmarks.paper.runs import Result, config_as_json
from benchmarks.paper.scales import NAMES as SCALES
from benchmarks.paper.scales import ROOT, Scale
from benchmarks.paper.statistics import Mean, mean_of, paired, verdict
from benchmarks.runs import marks, processor, seconds_by_machine
from datasets.files.cache import locked
from lib.config import Options
from lib.errors import UserError, one_line
from lib.runtime.atomic import replace_text
from lib.session.provenance import git_revision

Results = Mapping[str, Mapping[int, Result]]
"""Results by the variant's name and the seed."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Result))


def measured(results: Results, measure: Measure) -> dict[int, float]:
    """The measure of the runs that have it, by seed."""
    found = {seed: result.measure(measure.what) for seed, result in results.get(measure.variant, {}).items()}
    return {seed: value for seed, value in found.items() if value is not None}


def assess(results: Results, statement: Statement) -> tuple[Optional[Mean], str]:
    """The paired difference of a statement, in shares, and its verdict."""
    first = measured(results, statement.first)
    second = (
        measured(results, statement.second)
        if isinstance(statement.second, Measure)
        else dict.fromkeys(first, statement.second)
    )
    difference = paired(first, second)
    return difference, verdict(difference)


def as_json(plan: Plan, results: Results, date: str) -> dict[str, Any]:
    """The report as plain values: accuracies by seed and differences of statements, as fractions of 1.

    An item is in it once a statement of it can be tested; before that its only runs may be those of other items.
    """
    items = {}
    for name, item in plan.items.items():
        variants = [each.name for each in plan.variants_of(name) if results.get(each.name)]
        statements = [_statement_as_json(statement, *assess(results, statement)) for statement in item.statements]
        if variants and (not statements or any(each["n"] for each in statements)):
            items[name] = {"variants": variants, "statements": statements}
    codes = {code for codes in _told(results, "code") for code in codes.split(", ")}  # old runs have their report's
    return {
        "commit": ", ".join(sorted(codes)) or git_revision(),
        "machine": _machines(results),
        "date": date,
        "variants": {name: _variant_as_json(plan, results[name], name) for name in plan.variants if results.get(name)},
        "items": items,
    }


def _variant_as_json(plan: Plan, results: Mapping[int, Result], name: str) -> dict[str, Any]:
    found = {"options": _options(plan, name)}
    for more in _FIELDS:
        values = {str(seed): getattr(result, more) for seed, result in sorted(results.items())}
        if any(value is not None and value != {} for value in values.values()):
            found[more] = values
    return found


def update(plan: Plan, results: Results, folder: Path) -> tuple[Path, list[str]]:
    """Write the report of these runs and of those that the folder's report has already (see `write`).

    Returns:
        the report's path, and the names of variants whose earlier runs are left out (see `earlier`).

    Raises:
        UserError: as `earlier`.
    """
    with locked(_data_file(plan, folder)):
        merged, changed = earlier(plan, folder)
        for name, runs in results.items():
            merged[name] = {**merged.get(name, {}), **runs}
        return write(plan, merged, folder), changed


def earlier(plan: Plan, folder: Path) -> tuple[dict[str, dict[int, Result]], list[str]]:
    """The runs that the folder's report has already, whose sessions may lie on another machine.

    Returns:
        their results, and the names of variants that are left out because they had other options.

    Raises:
        UserError: the file is not what `write` writes.
    """
    path = _data_file(plan, folder)
    found: dict[str, dict[int, Result]] = {}
    changed: list[str] = []
    if not path.is_file():
        return found, changed
    defaults = config_as_json(Options())  # of options that are younger than the file
    try:
        for name, variant in json.loads(path.read_text(encoding="utf-8"))["variants"].items():
            if name in plan.variants and {**defaults, **variant["options"]} == _options(plan, name):
                found[name] = {int(seed): _result_of(variant, seed) for seed in variant["knn"]}
            else:
                changed.append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a report's file ({one_line(repr(error))}); move it away") from None
    return found, changed


def _data_file(plan: Plan, folder: Path) -> Path:
    return folder / f"paper-{plan.scale.name}.json"


def _options(plan: Plan, name: str) -> dict[str, Any]:
    return config_as_json(plan.scale.options(plan.variants[name]))


def _result_of(variant: Mapping[str, Any], seed: str) -> Result:
    """The inverse of `_variant_as_json` for one seed."""
    values = {name: variant[name][seed] for name in _FIELDS if name in variant}
    consistency = {int(index): share for index, share in values.get("consistency", {}).items()}
    return Result(**{**values, "consistency": consistency})


def _statement_as_json(statement: Statement, difference: Optional[Mean], said: str) -> dict[str, Any]:
    return {
        "text": statement.text,
        "difference": None if difference is None else difference.mean,
        "interval": None if difference is None or difference.interval is None else list(difference.interval),
        "n": 0 if difference is None else difference.n,
        "verdict": said,
    }


def write(plan: Plan, results: Results, folder: Path) -> Path:
    """Write paper-SCALE.md, paper-SCALE.json and paper-SCALE-ITEM.svg into a folder. Returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"paper-{plan.scale.name}"
    date = datetime.date.today().isoformat()
    found = as_json(plan, results, date)
    replace_text(_data_file(plan, folder), json.dumps(found, indent=1) + "\n")
    for name in found["items"]:
        plot(plan.items[name], {row: mean_of(_values(results, row.measure)) for row in plan.items[name].rows},
             folder / f"{stem}-{name}.svg")  # fmt: skip
    notes = folder / f"{stem}-notes.md"
    text = markdown(plan, results, found, notes.read_text(encoding="utf-8") if notes.is_file() else "")
    replace_text(folder / f"{stem}.md", text)
    return folder / f"{stem}.md"


def markdown(plan: Plan, results: Results, found: Mapping[str, Any], notes: str = "") -> str:
    """The report.

    Args:
        found: from `as_json`.
        notes: the last part of the report, written by hand in Markdown.
    """
    scale = plan.scale.name
    count = sum(map(len, results.values()))
    lines = [
        f"# The paper's tables and figures at scale {scale}",
        "",
        f"- command: `python3 -m benchmarks.paper ITEM ... --scale {_argument(plan.scale)} --seeds N`; recipe: "
        f"{_recipe(plan.scale)} over configs/base.yaml",
        f"- {count} finished runs, {found['date']}, {_machines(results)}, "
        f"{'; '.join(_told(results, 'device')) or 'no device'}; commits of the runs: {found['commit']}",
        "- accuracies: of the last network, kNN with training features recomputed; mean over the seeds with its 95 % t "
        "interval, which tells of the seeds alone: the test images are the same",
        "- differences: paired by seed, in points, with their 95 % t interval; *holds* and *opposite*: it lies on one "
        f"side of 0, with 3 seeds or more. {_count(found)} statements are tested, each at 95 %",
        "",
        "## The paper's statements, and ours",
        "",
        "| item | statement | difference | 95 % interval | n | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, item in found["items"].items():
        lines += [_statement_line(name, each) for each in item["statements"]]
    for name, item in plan.items.items():
        lines += ["", f"## {name}: {item.title}", "", *([item.note, ""] if item.note else [])]
        lines += _item_lines(item, results, f"paper-{scale}-{name}.svg" if name in found["items"] else None)
    return "\n".join([*lines, "", *([notes.strip(), ""] if notes else [])])


def _item_lines(item: Item, results: Results, picture: Optional[str]) -> list[str]:
    if not item.rows:
        return ["Not run at this scale."]
    end = ["", f"![{item.title}]({picture})"] if picture else []
    if item.columns:
        return [*_columns(item, results), *end]
    lines = ["| | ours | 95 % interval | n | published |", "|---|---|---|---|---|"]
    for row in item.rows:
        mean = mean_of(_values(results, row.measure))
        published = "" if row.published is None else f"{row.published:.1f} %"
        if mean is None:
            lines.append(f"| {row.label} | not run | | 0 | {published} |")
            continue
        lines.append(f"| {row.label} | {100 * mean.mean:.2f} % | {_interval(mean)} | {mean.n} | {published} |")
    return [*lines, *end]


def _columns(item: Item, results: Results) -> list[str]:
    lines = [
        "| | " + " | ".join(column.title for column in item.columns) + " | n |",
        "|---" * (len(item.columns) + 2) + "|",
    ]
    for row in item.rows:
        means = [mean_of(_values(results, Measure(row.measure.variant, column.what))) for column in item.columns]
        cells = [
            _cell(column, mean) if column.what != "processor" else _seconds(results, row.measure.variant)
            for column, mean in zip(item.columns, means)
        ]
        lines.append(f"| {row.label} | {' | '.join(cells)} | {0 if means[0] is None else means[0].n} |")
    return lines


def _cell(column: Column, mean: Optional[Mean]) -> str:
    if mean is None:
        return "not run"
    if not column.is_share:
        return f"{mean.mean:.4g}"
    half = "" if mean.interval is None else f" ± {100 * (mean.interval[1] - mean.mean):.2f}"
    return f"{100 * mean.mean:.2f}{half} %"


def _seconds(results: Results, variant: str) -> str:
    runs = results.get(variant, {}).values()
    seconds = [(each.machine, each.processor) for each in runs if each.processor is not None]
    return seconds_by_machine(seconds, marks(_told(results, "machine")), ".4g") or "not run"


def _argument(scale: Scale) -> str:
    return scale.name if scale.name in SCALES else scale.file.name


def _recipe(scale: Scale) -> str:
    """The scale's files, as links where they are the project's."""
    names = []
    for path in scale.files[1:]:
        folder = path.parent
        is_ours = folder.parent == ROOT / "benchmarks"
        link = f"[benchmarks/{folder.name}/{path.name}](../{folder.name}/{path.name})"
        names.append(link if is_ours else f"`{path.name}`")
    return " and ".join(names)


def _statement_line(item: str, each: Mapping[str, Any]) -> str:
    if each["difference"] is None:
        return f"| {item} | {each['text']} | not run | | 0 | {each['verdict']} |"
    interval = _interval(Mean(each["difference"], each["interval"] and tuple(each["interval"]), each["n"]), sign="+")
    difference = f"{100 * each['difference']:+.2f}"
    return f"| {item} | {each['text']} | {difference} | {interval} | {each['n']} | **{each['verdict']}** |"


def _interval(mean: Mean, sign: str = "") -> str:
    if mean.interval is None:
        return "-"
    return " to ".join(f"{100 * limit:{sign}.2f}" for limit in mean.interval)


def _values(results: Results, measure: Measure) -> list[float]:
    return list(measured(results, measure).values())


def _count(found: Mapping[str, Any]) -> int:
    return sum(each["n"] > 0 for item in found["items"].values() for each in item["statements"])


def _machines(results: Results) -> str:
    return "; ".join(name + mark for name, mark in marks(_told(results, "machine")).items()) or processor()


def _told(results: Results, what: str) -> list[str]:
    """What the runs told of themselves, each once: a field of `Result`."""
    return sorted({getattr(result, what) for runs in results.values() for result in runs.values()})
