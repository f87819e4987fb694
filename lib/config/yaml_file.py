"""Options in YAML files: reading them with their line numbers, and writing the merged ones.

PyYAML is imported only where a file is read or written: `--help` does not need it.
"""

from typing import Any, NamedTuple

from lib.config.option import PATH, TEXT, Option
from lib.config.options import OPTIONS, Settings
from lib.config.parsing import Raw
from lib.errors import UserError, shown

_TAG = "tag:yaml.org,2002:"
_NULL = _TAG + "null"
_TEXTS = {_TAG + kind for kind in ("bool", "int", "float", "str", "timestamp", "merge", "value")}


class Entry(NamedTuple):
    """One `key: value` of a file, the value as it is written there."""

    key: str
    raw: Raw
    line: int
    """Line of the key, counted from 1."""


def read(path: str) -> list[Entry]:
    """The entries of a YAML file. Values stay text, which their option converts; no YAML object is constructed.

    Raises:
        UserError: the file cannot be read, is not YAML, is not a flat mapping, or has a key twice.
    """
    import yaml

    text = _text(path)
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(_syntax(path, error)) from None
    except RecursionError:
        raise UserError(f"config file {path}: nested too deep; it must be `option: value` lines") from None
    if document is None:
        return []  # nothing but comments
    if not isinstance(document, yaml.MappingNode):
        raise UserError(f"config file {path}: it must consist of `option: value` lines")
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    for key, value in document.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"config file {path}, line {line}: the name of an option was expected")
        if key.value in lines:
            raise UserError(
                f"config file {path}, line {line}: {shown(key.value)} is given a second time, first in line"
                f" {lines[key.value]}; remove one of them"
            )
        lines[key.value] = line
        entries.append(Entry(key.value, _raw(path, line, key.value, value), line))
    return entries


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows put a byte order mark
            return file.read()
    except FileNotFoundError:
        raise UserError(f"config file {path}: there is no such file; check the path after --cfgs") from None
    except IsADirectoryError:
        raise UserError(f"config file {path}: it is a folder; name a YAML file in it") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {path}: it is not UTF-8 text; is it a YAML file?") from None
    except OSError as error:
        raise UserError(f"config file {path}: it cannot be read: {error.strerror}") from None


def _syntax(path: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"config file {path}" if mark is None else f"config file {path}, line {mark.line + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{place}: not valid YAML: {problem}"


def _raw(path: str, line: int, key: str, node: Any) -> Raw:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        items = [_raw(path, line, key, item) for item in node.value if isinstance(item, yaml.ScalarNode)]
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) == len(node.value):
            return texts
    elif node.tag == _NULL:
        return None
    elif isinstance(node, yaml.ScalarNode) and node.tag in _TEXTS:
        return node.value
    raise UserError(
        f"config file {path}, line {line}: {shown(key)}: expected a value or a list of values, without nesting or tags"
    )


def to_yaml(settings: Settings) -> str:
    """The merged options as a config file; read again with `--cfgs`, it gives the same options.

    Options of a single call (`Option.kept` false) are comments at the end, so that the file starts the same run again.
    """
    lines = ["# All options of a run. To start the same run again: python3 main.py --cfgs THIS_FILE"]
    call = ["", "# of this call, not read back"]
    group = None
    for option in OPTIONS:
        value = getattr(settings.options, option.name)
        line = f"{option.name}: {_written(option, list(value) if isinstance(value, tuple) else value)}"
        if not option.kept:
            call.append(f"# {line}")
            continue
        if option.group != group:
            group = option.group
            lines += ["", f"# {group}"]
        lines.append(line)
    return "\n".join([*lines, *call]) + "\n"


def _written(option: Option, value: Any) -> str:
    import yaml

    # free text is quoted always: a folder may be called 2026, null or 1:30
    style = '"' if option.kind in (TEXT, PATH) and value is not None else None
    text = yaml.safe_dump(value, default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.splitlines()[0]  # after a single value it writes a line of dots
