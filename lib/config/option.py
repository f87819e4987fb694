"""What is known about one option, before it has a value."""

from dataclasses import dataclass
from typing import Any, Optional

BOOL, INT, FLOAT, CHOICE, TEXT, PATH = "bool", "int", "float", "choice", "text", "path"

AUTO = "auto"
"""What may be written for a number that then follows from other options, if `Option.auto`; see `in_effect`."""

ANY_LENGTH = 0
"""`Option.length` of a list that may hold any number of values."""

_WITHOUT_UNIT = {BOOL: "on/off", CHOICE: "name", TEXT: "name", PATH: "path", INT: "number", FLOAT: "number"}
_ONE = {INT: "a whole number", FLOAT: "a number", TEXT: "text", PATH: "a path"}
_MANY = {INT: "whole numbers", FLOAT: "numbers", TEXT: "names", PATH: "paths"}


@dataclass(frozen=True)
class Bounds:
    """An interval; a limit that is None does not limit, one that is open is not itself allowed."""

    low: Optional[float] = None
    high: Optional[float] = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        return self.high is None or value < self.high or (value == self.high and not self.high_open)

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'above' if self.low_open else 'at least'} {self.low}"
        high = "" if self.high is None else f"{'below' if self.high_open else 'at most'} {self.high}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Form:
    """What a text must look like: a regular expression for the whole of it, and the same in words."""

    pattern: str
    words: str


@dataclass(frozen=True)
class Option:
    """One option, as YAML files, the command line, `--help` and the README know it."""

    name: str
    """As in YAML files and as an attribute, e.g. batch_size."""
    kind: str
    """BOOL, INT, FLOAT, CHOICE, TEXT or PATH; of each element where there is a length."""
    default: Any
    help: str
    unit: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    bounds: Optional[Bounds] = None
    nullable: bool = False
    length: Optional[int] = None
    """None for a single value, otherwise how many values, or ANY_LENGTH."""
    form: Optional[Form] = None
    auto: bool = False
    """Whether a number may be left to other options, by `AUTO`."""
    kept: bool = True
    """Whether it belongs to the run, and so into checkpoints and config.yaml, or to this one call."""

    @property
    def flag(self) -> str:
        """As on the command line, e.g. --batch-size."""
        return "--" + self.name.replace("_", "-")

    @property
    def measured_in(self) -> str:
        """The unit, or what stands in its place for values that have none."""
        return self.unit or _WITHOUT_UNIT[self.kind]

    @property
    def limits(self) -> str:
        """Choices, range or form in words; empty if the kind says it all."""
        if self.choices:
            return f"{'one' if self.length is None else 'some'} of " + ", ".join(self.choices)
        if self.form is not None:
            return self.form.words
        words = "" if self.bounds is None else str(self.bounds)
        return f"{words}, or {AUTO}" if self.auto else words

    @property
    def expected(self) -> str:
        """The values allowed, in words for an error, e.g. `a number, above 0 and at most 1`."""
        if self.kind == BOOL:
            words = "true or false"
        elif self.choices or self.form is not None:
            words = self.limits
        else:
            words = _ONE[self.kind] if self.length is None else f"{self.length or ''} {_MANY[self.kind]}".strip()
            words += f", {self.limits}" if self.limits else ""
        return f"{words}, or null" if self.nullable else words
