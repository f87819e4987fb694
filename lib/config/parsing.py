"""Parses the command line, and converts the text of an option to its value within type and limits.

Not argparse: it takes `-5e-4` for an option before Python 3.14, ends the process on a mistake, and suggests no
nearest name. The grammar is small: `--name` or `--name=value`, and the values up to the next option.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Union, cast

from lib.config.option import ANY_LENGTH, AUTO, BOOL, CHOICE, FLOAT, INT, PATH, TEXT, Option
from lib.config.options import OPTIONS
from lib.errors import UserError, hint, shown

Raw = Union[None, str, list[str]]
"""An unconverted value from YAML or the command line: text, so that `5e-4` and `3/4` mean the same in both."""

_FLAGS = {option.flag: option for option in OPTIONS}
_NO_FLAGS = {"--no-" + option.name.replace("_", "-"): option for option in OPTIONS if option.kind == BOOL}


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether `--help` or `-h` is among the arguments."""
    return "--help" in argv or "-h" in argv


def parse(argv: Sequence[str]) -> dict[str, Raw]:
    """The options on the command line by name, unconverted.

    Of an option given twice the last one counts; the files of several `--cfgs` add up.

    Raises:
        UserError: an unknown option, a value that belongs to none, or a value after `--no-...`.
    """
    values: dict[str, Raw] = {}
    for option, words in _grouped(argv):
        if option.kind == PATH and option.length is not None:
            values[option.name] = [*cast("list[str]", values.get(option.name, [])), *words]
        else:
            values[option.name] = _raw(option, words)
    return values


def _grouped(argv: Sequence[str]) -> list[tuple[Option, list[str]]]:
    """The options in the order given, each with the words that follow it."""
    found: list[tuple[Option, list[str]]] = []
    closed = False  # after --no-name, which takes no value
    for word in argv:
        if not re.match(r"--|-[A-Za-z]", word):  # a minus before a digit or a point starts a number
            if not found:
                raise UserError(f"{shown(word)} on the command line belongs to no option; config files follow --cfgs")
            if closed:
                raise UserError(f"{shown(word)} on the command line: --no-{found[-1][0].flag[2:]} takes no value")
            found[-1][1].append(word)
            continue
        name, equals, value = word.partition("=")
        closed = name in _NO_FLAGS
        if closed:
            if equals:
                raise UserError(f"{shown(word)} on the command line: {name} takes no value")
            found.append((_NO_FLAGS[name], ["false"]))
        elif name in _FLAGS:
            found.append((_FLAGS[name], [value] if equals else []))
        else:
            raise UserError(f"unknown option {shown(name)} on the command line; {hint(name, [*_FLAGS, *_NO_FLAGS])}")
    return found


def _raw(option: Option, words: list[str]) -> Raw:
    if option.kind == BOOL and not words:
        return "true"
    if option.kind == TEXT and len(words) > 1 and any(" " in word for word in words):
        return words  # `--classes "golden retriever" cat`: quotation marks hold a name together
    if option.length is not None:
        return " ".join(words)  # `--scale 0.2 1`, `--scale 0.2, 1` and `--scale "(0.2, 1)"` are one
    return words[0] if len(words) == 1 else words


_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULL = ("null", "none")
MOST = 2**31
"""Whole numbers must be below it, unless an option has its own limit: they are counts and lengths of tensors."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Limits of the size of other numbers: some are squared in float32."""
_SHOWN = 60  # characters of a wrong value that an error repeats


def from_text(option: Option, raw: Raw) -> Any:
    """The value of an option written as text.

    Lists may be written as a list of texts, or as one: `0.2 1`, `0.2, 1`, `(0.2, 1.)`, `[0.2, 1]`.

    Raises:
        ValueError: it is not a value of this option; the message says what is expected.
    """
    with _naming_mismatch(option, raw):
        return _scanned(option, raw)


def from_value(option: Option, value: Any) -> Any:
    """The value of an option that is a Python value already, e.g. out of a checkpoint: lists become tuples.

    Raises:
        ValueError: it is not a value of this option; the message says what is expected.
    """
    with _naming_mismatch(option, value):
        return _checked(option, value)


@contextmanager
def _naming_mismatch(option: Option, got: Any) -> Iterator[None]:
    """Converts an error within the block into the ValueError that says what the option expects."""
    try:
        yield
    except _NotComputable as error:
        raise _mismatch(option, got, str(error)) from None
    except (ValueError, OverflowError):
        raise _mismatch(option, got) from None


class _NotComputable(ValueError):
    """A number too large or too small to compute with; the message names the limits."""


def _mismatch(option: Option, got: Any, besides: str = "") -> ValueError:
    if got is None:
        shown = "null"
    elif got in ("", []):
        shown = "nothing"
    elif isinstance(got, (list, tuple)):
        shown = ", ".join(repr(item) for item in got)
    else:
        shown = repr(got)
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    return ValueError(f"expected {option.expected}{besides and ', ' + besides}, got {shown}")


def _scanned(option: Option, raw: Raw) -> Any:
    if raw is None or (option.nullable and isinstance(raw, str) and raw.strip().lower() in _NULL):
        return _checked(option, None)
    if option.auto and isinstance(raw, str) and raw.strip().lower() == AUTO:
        return AUTO
    if option.length is None:
        if not isinstance(raw, str):
            raise ValueError
        return _checked(option, _scalar(option.kind, raw))
    items = _split(option.kind, raw) if isinstance(raw, str) else raw
    return _checked(option, [_scalar(option.kind, item) for item in items])


def _split(kind: str, text: str) -> list[str]:
    if kind == PATH:
        return [text]  # spaces and commas may be part of it
    text = text.strip()
    if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")):
        text = text[1:-1].strip()
    if text.endswith(","):
        text = text[:-1].rstrip()  # as Python writes a tuple of one
    return re.split(r"\s*,\s*|\s+", text) if text else []


def _scalar(kind: str, text: str) -> Any:
    if kind == BOOL:
        word = text.strip().lower()
        if word not in _WORDS:
            raise ValueError
        return _WORDS[word]
    if kind == INT:
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
            raise ValueError
        return int(text)
    if kind == FLOAT:
        above, slash, below = text.partition("/")
        if not slash:
            return float(text)
        if float(below) == 0:
            raise ValueError
        return float(above) / float(below)
    return text


def _checked(option: Option, value: Any) -> Any:
    if value is None:
        if not option.nullable:
            raise ValueError
        return None
    if option.auto and value == AUTO:
        return AUTO
    if option.length is None:
        return _checked_one(option, value)
    if option.length == ANY_LENGTH and not isinstance(value, (list, tuple)):
        value = [value]  # older checkpoints hold single values of options that are lists now
    if not isinstance(value, (list, tuple)) or (option.length and len(value) != option.length):
        raise ValueError
    return tuple(_checked_one(option, item) for item in value)


def _checked_one(option: Option, value: Any) -> Any:
    if option.kind == BOOL:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if option.kind in (INT, FLOAT):
        return _checked_number(option, value)
    if not isinstance(value, str):
        raise ValueError
    if option.kind == CHOICE:
        value = value.lower()
        if value not in option.choices:
            raise ValueError
    elif option.kind == PATH:
        if not value or "\0" in value:
            raise ValueError
        value = os.path.expanduser(value)  # a shell leaves the ~ of --data-root=~/data, and YAML any
    elif option.form is not None and not re.fullmatch(option.form.pattern, value):
        raise ValueError
    return value


def _checked_number(option: Option, value: Any) -> Any:
    # bool is a subclass of int, but `batch_size: true` is a mistake
    if isinstance(value, bool) or not isinstance(value, int if option.kind == INT else (int, float)):
        raise ValueError
    if option.kind == FLOAT:
        value = float(value)
        if not math.isfinite(value):
            raise ValueError
        if value != 0 and not SMALLEST <= abs(value) <= LARGEST:
            raise _NotComputable(f"between {SMALLEST:g} and {LARGEST:g} in size")
    elif (option.bounds is None or option.bounds.high is None) and not -MOST < value < MOST:
        raise _NotComputable(f"below {MOST}")
    if option.bounds is not None and value not in option.bounds:
        raise ValueError
    return value
