"""Reading the command line.

Not argparse: it takes `-5e-4` for an option before Python 3.14, ends the process on a mistake, and knows no
nearest name. The grammar is small: `--name` or `--name=value`, and the values up to the next option.
"""

import re
from collections.abc import Sequence

from lib.config.catalogue import OPTIONS
from lib.config.names import hint, shown
from lib.config.option import BOOL, PATH, TEXT, Option
from lib.config.values import Raw
from lib.errors import UserError

_FLAGS = {option.flag: option for option in OPTIONS}
_NO_FLAGS = {"--no-" + option.name.replace("_", "-"): option for option in OPTIONS if option.kind == BOOL}


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether `--help` or `-h` stands anywhere."""
    return "--help" in argv or "-h" in argv


def parse(argv: Sequence[str]) -> dict[str, Raw]:
    """What the command line says, by the options' names, as text yet to be read.

    An option given twice counts as given last; files of `--cfgs` add up.

    Raises:
        UserError: an unknown option, a value that belongs to none, or a value after `--no-...`.
    """
    values: dict[str, Raw] = {}
    for option, words in _grouped(argv):
        if option.kind == PATH and option.length is not None:
            values[option.name] = [*values.get(option.name, []), *words]
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
