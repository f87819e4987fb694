"""The merged options and where each came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from fractions import Fraction
from typing import Any, Callable, Union

from lib.config.catalogue import OPTIONS
from lib.config.option import AUTO

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

    @property
    def sigma(self) -> float:
        """sigma of the kNN vote: --knn-sigma in effect."""
        return in_effect("knn_sigma", self.__getattribute__)

    @property
    def select_rate(self) -> Union[float, Fraction]:
        """Share of the images by which the anchors grow in each round: --ANs-select-rate in effect."""
        return in_effect("ANs_select_rate", self.__getattribute__)

    def as_dict(self) -> dict[str, Any]:
        """The options that belong to the run rather than to one call (`Option.kept`), as plain values.

        Only None, bool, int, float, str and lists of these: safe in YAML, in JSON and in a checkpoint.
        """
        kept = {option.name for option in OPTIONS if option.kept}
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name in kept}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def in_effect(name: str, value: Callable[[str], Any]) -> Any:
    """An option's value; of one that is `auto` and has a number, what follows from other options.

    Args:
        value: of an option by its name.
    """
    if value(name) != AUTO:
        return value(name)
    if name == "knn_sigma":
        return value("npc_temperature")  # one parameter in the authors' code
    if name == "ANs_select_rate":
        return Fraction(1, max(1, value("max_round") - 1))  # S = r / R of equation 6
    return AUTO


def of_older_version(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did about options that its checkpoint or config.yaml lacks, where that is not today's default.

    Args:
        options: those it has.
    """
    is_alexnet = str(options.get("network")).lower() == "alexnet"
    return {"init": "released" if is_alexnet else "torchvision", "knn_sigma": 0.1, "ANs_select_rate": 0.25}


@dataclass(frozen=True)
class Settings:
    """The merged options."""

    options: Options
    sources: Mapping[str, str]
    """For every option's name: `default`, `checkpoint`, a config file as given, or `command line`."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each config file says, by its path as given and the options' names."""
