"""The merged options and where each came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from lib.config.catalogue import OPTIONS

_Fields = make_dataclass(
    "_Fields",
    [(option.name, Any, field(default=option.default)) for option in OPTIONS],
    frozen=True,
)


@dataclass(frozen=True)
class Options(_Fields):
    """The value of every option as an attribute, e.g. `options.batch_size`; lists are tuples. Immutable.

    `Options()` holds the defaults, `dataclasses.replace` makes a changed copy. Values are not checked here:
    `lib.config.collect` is the way in for values that a user wrote.
    """

    def as_dict(self) -> dict[str, Any]:
        """The options that belong to the run rather than to one call (`Option.kept`), as plain values.

        Only None, bool, int, float, str and lists of these: safe in YAML, in JSON and in a checkpoint.
        """
        kept = {option.name for option in OPTIONS if option.kept}
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name in kept}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Settings:
    """The merged options."""

    options: Options
    sources: Mapping[str, str]
    """For every option's name: `default`, `checkpoint`, a config file as given, or `command line`."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each config file says, by its path as given and the options' names."""
