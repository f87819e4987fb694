"""Formats the options for `--help`, `--print-args` and docs/options.md."""

import shutil
import textwrap
from itertools import groupby
from typing import Any

from lib.config.option import ANY_LENGTH, BOOL, CHOICE, FLOAT, INT, PATH, Option
from lib.config.options import OPTIONS, Options, Settings

_HEAD = """\
Anchor neighbourhood discovery: learn image features without labels.

usage:
  python3 main.py --cfgs configs/base.yaml configs/cifar10.yaml   train
  python3 main.py --resume sessions/NAME [--test-only]            resume; test

Options can stand in a config file too, as batch_size: 128. The command line
overrides config files, a later file an earlier one, and all a checkpoint.

Lists: --scale 0.2 1 or --scale "(0.2, 1)". Switches: --brief, --no-brief."""

_VALUE = {INT: "N", FLOAT: "X", CHOICE: "NAME", PATH: "PATH"}
_COLUMN = 26  # where the descriptions start


def help_text() -> str:
    """The text of `--help`, as wide as the terminal within 80 to 100 columns."""
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    parts = [_HEAD]
    for group, options in groupby(OPTIONS, key=lambda option: option.group):
        parts.append(f"\n{group}:")
        parts += [_entry(_usage(option), _description(option), width) for option in options]
        if group == "general":
            parts.append(_entry("-h, --help", "show this and stop", width))
    return "\n".join(parts)


def table(settings: Settings) -> str:
    """The merged options, their defaults and where each came from, for `--print-args`."""
    from prettytable import PrettyTable  # only here: it takes longer to load than everything else

    defaults = Options()
    lines = PrettyTable(["option", "value", "default", "unit", "from"])
    lines.align = "l"
    for option in OPTIONS:
        value, default = getattr(settings.options, option.name), getattr(defaults, option.name)
        lines.add_row(
            [option.name, value_text(value), value_text(default), option.measured_in, settings.sources[option.name]]
        )
    return lines.get_string()


def markdown() -> str:
    """The options as Markdown, one table a group, for docs/options.md."""
    parts = []
    for group, options in groupby(OPTIONS, key=lambda option: option.group):
        rows = [f"**{group}**", "", "| option | default | unit | what it does |", "|---|---|---|---|"]
        for option in options:
            about = option.help + (f" ({option.limits})" if option.limits else "")
            cells = (f"`{option.flag}`", f"`{value_text(option.default, short=True)}`", option.measured_in, about)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _usage(option: Option) -> str:
    if option.kind == BOOL:
        return f"{option.flag}, --no-{option.flag[2:]}" if option.default else option.flag
    value = _VALUE.get(option.kind, "NAME")
    if option.length is None:
        return f"{option.flag} {value}"
    if option.length == ANY_LENGTH:
        return f"{option.flag} {value} ..."
    return " ".join([option.flag, *[value] * option.length])


def _description(option: Option) -> str:
    notes = [option.unit, option.limits, f"default {value_text(option.default, short=True)}"]
    return f"{option.help} [{'; '.join(note for note in notes if note)}]"


def _entry(left: str, right: str, width: int) -> str:
    indent = " " * _COLUMN
    lines = textwrap.wrap(right, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    left = f"  {left}"
    if len(left) > _COLUMN - 2:
        return "\n".join([left, *lines])
    return "\n".join([left.ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]])


def value_text(value: Any, short: bool = False) -> str:
    """A value as a config file writes it; short: numbers to six digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"({', '.join(value_text(item, short) for item in value)})" if value else "[]"
    return f"{value:.6g}" if short and isinstance(value, float) else str(value)
