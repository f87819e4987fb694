"""`Option` describes one option; `option` declares one as a field of `Options`."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional, Union, get_args, get_origin

BOOL, INT, FLOAT, CHOICE, TEXT, PATH = "bool", "int", "float", "choice", "text", "path"

AUTO = "auto"
"""The value of a number that follows from other options, where `Option.auto` allows it; see `in_effect`."""
Auto = Literal["auto"]

ANY_LENGTH = 0
"""`Option.length` of a list that may hold any number of values."""

_WITHOUT_UNIT = {BOOL: "on/off", CHOICE: "name", TEXT: "name", PATH: "path", INT: "number", FLOAT: "number"}
_ONE = {INT: "a whole number", FLOAT: "a number", TEXT: "text", PATH: "a path"}
_MANY = {INT: "whole numbers", FLOAT: "numbers", TEXT: "names", PATH: "paths"}


@dataclass(frozen=True)
class Bounds:
    """An interval. None stands for no limit; an open limit excludes the limit itself."""

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
    """The format of a text: a regular expression that matches all of it, and the same in words."""

    pattern: str
    words: str


@dataclass(frozen=True)
class Option:
    """Name, type, default, limits and help of one option, for YAML files, the command line and docs/options.md."""

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
    """Whether `AUTO` is allowed for a number, which then follows from other options."""
    kept: bool = True
    """Whether it belongs to the run and is kept in checkpoints and config.yaml; otherwise it concerns one call."""

    @property
    def flag(self) -> str:
        """As on the command line, e.g. --batch-size."""
        return "--" + self.name.replace("_", "-")

    @property
    def measured_in(self) -> str:
        """The unit, or the kind of value where there is no unit."""
        return self.unit or _WITHOUT_UNIT[self.kind]

    @property
    def limits(self) -> str:
        """Choices, range or form in words; empty if all values of the kind are allowed."""
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


def option(
    default: Any,
    help: str,
    unit: str = "",
    *,
    group: str,
    choices: tuple[str, ...] = (),
    bounds: Optional[Bounds] = None,
    form: Optional[Form] = None,
    path: bool = False,
    kept: bool = True,
) -> Any:
    """A field of `Options`. The kind of paths and choices follows from the arguments, any other from the annotation."""
    kind = PATH if path else CHOICE if choices else ""
    about = Option("", kind, default, help, unit, group, choices, bounds, form=form, kept=kept)
    return field(default=default, metadata={"option": about})


def completed(name: str, annotation: Any, about: Option) -> Option:
    """The arguments of `option`, completed by the field's name and annotation."""
    members = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    kinds = [member for member in members if member not in (type(None), Auto)]
    assert len(kinds) == 1, f"{name}: an option has one type, besides None and Auto"
    length = None
    if get_origin(kinds[0]) is tuple:
        elements = get_args(kinds[0])
        length = ANY_LENGTH if elements[-1] is Ellipsis else len(elements)
        kinds = [elements[0]]
    return replace(
        about,
        name=name,
        kind=about.kind or _KINDS[kinds[0]],
        nullable=type(None) in members,
        auto=Auto in members,
        length=length,
    )


_KINDS = {bool: BOOL, int: INT, float: FLOAT, str: TEXT}
