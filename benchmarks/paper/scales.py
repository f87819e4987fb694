"""The scales: a recipe for each, in benchmarks/scales/, and the options of a variant of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.config import Options, collect
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("digits", "fashion", "cifar-small", "paper")
FULL = "paper"
"""The scale of the published recipe, with the paper's data sets and networks."""
_IMAGES = {"digits": 1_437, "fashion-mnist": 60_000, "mnist": 60_000, "cifar10": 50_000}  # training images


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        name: that of its sessions, without the seed.
        changes: options, by name, that differ from the scale's.
        configs: files of configs/, by name, that follow the scale's, before the changes.
        is_read_out: whether the finished network is evaluated at the output and at the backbone, plain and whitened.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    is_read_out: bool = False


@dataclass(frozen=True)
class Scale:
    """A recipe: the scale's file over configs/base.yaml, with its images of benchmarks/images, if any, between them."""

    file: Path

    @classmethod
    def of(cls, name: str) -> "Scale":
        """One of `NAMES`, or the scale of a YAML file, which is named after it.

        Raises:
            UserError: it is neither, or the file has the name of a scale of `NAMES`, whose report it would replace.
        """
        if name in NAMES:
            return cls(ROOT / "benchmarks" / "scales" / f"{name}.yaml")
        if name.endswith(".yaml"):
            scale = cls(Path(name).absolute())
            if scale.name in NAMES:
                raise UserError(f"--scale {name}: {scale.name} is the name of a scale of the project; rename the file")
            return scale
        raise UserError(f"--scale {name}: expected one of {', '.join(NAMES)}, or the path of a YAML file")

    @property
    def name(self) -> str:
        return self.file.stem

    @cached_property
    def base(self) -> Options:
        """The options of the scale itself.

        Raises:
            UserError: a mistake in its file.
        """
        return self.options(Variant("and"))

    @property
    def images(self) -> int:
        """Training images of a run.

        Raises:
            UserError: it depends on the files of the data set.
        """
        all_images = _IMAGES.get(self.base.dataset, self.base.limit_train)
        if all_images is None:
            raise UserError(f"scale {self.name}: dataset {self.base.dataset} needs a limit_train in {self.file}")
        return min(all_images, self.base.limit_train or all_images)

    @property
    def files(self) -> list[Path]:
        """Its files of options, of which later ones override earlier ones."""
        images = ROOT / "benchmarks" / "images" / f"{self.name}.yaml"
        return [ROOT / "configs" / "base.yaml", *([images] if images.is_file() else []), self.file]

    def arguments(self, variant: Variant) -> list[str]:
        """Arguments of main.py that train the variant, without the seed and the session."""
        files = [*self.files, *(ROOT / "configs" / f"{name}.yaml" for name in variant.configs)]
        words = ["--cfgs", *map(str, files)]
        for name, value in variant.changes.items():
            words += _words(name, value)
        return words

    def options(self, variant: Variant) -> Options:
        """The merged options of a variant.

        Raises:
            UserError: a mistake in its files.
        """
        return collect(self.arguments(variant)).options


def _words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, (tuple, list)) else (value,))]
