"""Where a run starts: fresh, from a checkpoint, or from weights. PyTorch is imported only to read a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from lib.config import Settings, collect, of_older_version
from lib.distributed.process_info import ProcessInfo
from lib.errors import UserError, not_none, one_line
from lib.logger.console import print_error

if TYPE_CHECKING:
    from lib.pretrained.weights_file import WeightsFile

_ONE_OF_THEM = "--pretrained starts a new run and --resume continues one; give one of them"


@dataclass(frozen=True)
class Fresh:
    """A network and a memory bank initialised from the seed."""


@dataclass(frozen=True, eq=False)
class Resumed:
    """A run that continues from a checkpoint (--resume).

    Attributes:
        checkpoint: the content of the file, as `lib.checkpoint.io.load` returns it.
        path: of the file.
    """

    checkpoint: dict[str, Any]
    path: Path


@dataclass(frozen=True, eq=False)
class FromWeights:
    """A network's weights (--pretrained, or --resume of a file that holds no run).

    Attributes:
        file: the weights with their metadata.
        note: a line about the file for the user; empty for --pretrained.
    """

    file: "WeightsFile"
    note: str = ""


Start = Union[Fresh, Resumed, FromWeights]


def resumed_path(start: Start) -> Optional[Path]:
    """The path of the checkpoint of a resumed run; None for other starts."""
    return start.path if isinstance(start, Resumed) else None


def find_start(
    settings: Settings, arguments: Sequence[str], process: ProcessInfo, is_joined: bool
) -> tuple[Settings, Start]:
    """Read what --resume or --pretrained names, and merge its options below the config files and the command line.

    Args:
        settings: the options of the command line and the config files.
        arguments: the command line.
        process: this process.
        is_joined: whether the processes of the run have their devices already.

    Raises:
        UserError: the file is missing, cannot be read, or contradicts the options.
    """
    options = settings.options
    if options.resume is not None:
        return _from_resume(settings, arguments, process, is_joined)
    if options.pretrained is None:
        return settings, Fresh()
    from lib.pretrained import weights_file

    weights = weights_file.read(Path(options.pretrained))
    return collect(arguments, weights.layer(options.normalise is None), settings.files), FromWeights(weights)


def _from_resume(
    settings: Settings, arguments: Sequence[str], process: ProcessInfo, is_joined: bool
) -> tuple[Settings, Start]:
    """The run that --resume names, or the weights of a file of another origin."""
    from lib.checkpoint.manager import open_checkpoint
    from lib.pretrained import weights_file

    options, resume = settings.options, not_none(settings.options.resume)
    try:
        saved, path, unreadable = open_checkpoint(resume, options.sess_dir)
    except UserError as refusal:
        weights = weights_file.instead_of_checkpoint(Path(resume), refusal)
        note = f"{weights.name}: {weights.kind}; its network is used as with --pretrained"
        return _with_weights_of(weights, settings, arguments), FromWeights(weights, note)
    for line in unreadable if process.rank == 0 else ():
        print_error(f"warning: {one_line(line)}")
    return _with_options_of(saved, settings, arguments, is_joined), Resumed(saved, path)


def _with_options_of(saved: dict[str, Any], settings: Settings, arguments: Sequence[str], is_joined: bool) -> Settings:
    """The settings of a run that is resumed or evaluated.

    Raises:
        UserError: --pretrained is given as well.
    """
    from lib.checkpoint.manager import statistics

    # GPU indices belong to a machine; joined processes have their devices already
    keeps_cpu = not is_joined and saved["options"].get("gpus") == "cpu"
    stored = {name: value for name, value in saved["options"].items() if keeps_cpu or name != "gpus"}
    stored = {**of_older_version(stored), **stored}
    settings = collect(arguments, stored, settings.files)
    if settings.options.test_only and settings.options.normalise == stored.get("normalise"):
        settings = collect(arguments, {**stored, **statistics(saved)}, settings.files)
    if settings.sources["pretrained"] == "command line":
        raise UserError(_ONE_OF_THEM)
    return settings


def _with_weights_of(weights: "WeightsFile", settings: Settings, arguments: Sequence[str]) -> Settings:
    """The settings where --resume names weights of another origin, as --pretrained would give them.

    Raises:
        UserError: a run is to be resumed, or --pretrained is given as well.
    """
    options = settings.options
    if options.pretrained is not None:
        raise UserError(_ONE_OF_THEM)
    if not (options.test_only or options.export or options.embed):
        raise UserError(
            f"--resume {weights.name}: it is {weights.kind}, which holds no run that can be resumed; --pretrained "
            f"{weights.name} starts a new run from its weights, and --test-only evaluates them"
        )
    settings = collect(arguments, weights.layer(options.normalise is None), settings.files)
    return replace(settings, options=replace(settings.options, resume=None, pretrained=weights.name))
