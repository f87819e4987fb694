"""Merges the layers (defaults, checkpoint, config files, command line) and checks options against each other."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from lib.config import yaml_file
from lib.config.option import Option
from lib.config.options import OPTIONS, Options, Settings
from lib.config.parsing import asks_for_help, from_text, from_value, parse
from lib.config.render import help_text
from lib.errors import UserError, hint, shown

_BY_NAME = {option.name: option for option in OPTIONS}

Layer = dict[str, Any]
"""The values that one source sets, by option name."""


def collect(
    argv: Sequence[str], saved: Optional[Mapping[str, object]] = None, read: Optional[Mapping[str, Layer]] = None
) -> Settings:
    """Read the command line and the config files it names, and merge the layers.

    Args:
        argv: the command line, without the program's name.
        saved: the options stored in the checkpoint of `--resume`, or those that describe the network of
            `--pretrained`. The options name the file, so a caller that reads one calls `collect` twice; the options
            are checked against each other in the second call.
        read: the content of the config files, `Settings.files` of the first call: a file may be a pipe, which can be
            read only once.

    Returns:
        the options: the defaults, overridden by `saved`, by the config files from left to right, and by the command
        line.

    Raises:
        UserError: a mistake in one of the sources.
        SystemExit: after `--help`, status 0.
    """
    if asks_for_help(argv):
        print(help_text())
        raise SystemExit(0)
    written = _from_command_line(argv)
    files = dict(read or {})
    for path in written.get("cfgs", ()):
        if path not in files:
            files[path] = _from_file(path)
    layers = [(path, files[path]) for path in written.get("cfgs", ())]
    layers.append(("command line", written))
    if saved is not None:
        given = _merged(layers)[0]
        file = given.get("resume") or given.get("pretrained")
        place = "checkpoint" if file is None else f"checkpoint {file}"
        layers.insert(0, ("checkpoint", _from_checkpoint(saved, place)))
    values, sources = _merged(layers)
    named = {option.name: sources.get(option.name, "default") for option in OPTIONS}
    settings = Settings(Options(**values), named, files)
    # without the checkpoint's options, those of a resumed run are not complete yet
    if saved is not None or (settings.options.resume is None and settings.options.pretrained is None):
        check_together(settings.options)
    return settings


def _merged(layers: Sequence[tuple[str, Layer]]) -> tuple[Layer, dict[str, str]]:
    values: Layer = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return values, sources


def _from_command_line(argv: Sequence[str]) -> Layer:
    layer = {}
    for name, raw in parse(argv).items():
        option = _BY_NAME[name]
        try:
            layer[name] = from_text(option, raw)
        except ValueError as error:
            raise UserError(f"{option.flag} on the command line: {error}") from None
    if layer.get("cfgs") == ():
        raise UserError("--cfgs on the command line: expected the paths of config files, got nothing")
    if len(layer.get("compare", ("", ""))) < 2:
        raise UserError("--compare on the command line: expected the folders of two sessions or more")
    return layer


def _from_file(path: str) -> Layer:
    layer = {}
    for key, raw, line in yaml_file.read(path):
        place = f"config file {path}, line {line}"
        if key not in _BY_NAME:
            raise UserError(f"{place}: unknown option {shown(key)}; {hint(key, _BY_NAME)}")
        if key == "cfgs":
            raise UserError(f"{place}: a config file cannot name others; list them after --cfgs on the command line")
        try:
            layer[key] = from_text(_BY_NAME[key], raw)
        except ValueError as error:
            raise UserError(f"{place}: {key}: {error}") from None
    return layer


def _from_checkpoint(saved: Mapping[str, object], place: str) -> Layer:
    if not isinstance(saved, Mapping):
        raise UserError(f"{place}: its options are not a mapping; was it written by this program?")
    layer = {}
    for name, value in saved.items():
        option: Optional[Option] = _BY_NAME.get(name)
        if option is None or not option.kept:
            continue  # an option of an older version, or one of a single call
        try:
            layer[name] = from_value(option, value)
        except ValueError as error:
            raise UserError(f"{place}: {name}: {error}") from None
    return layer


_MAX_HUE = 0.5  # half of the colour circle; a larger shift equals a smaller one in the other direction


def check_together(options: Options) -> None:
    """Check options against each other.

    Raises:
        UserError: naming the options that contradict each other.
    """
    for name in ("scale", "ratio"):
        low, high = getattr(options, name)
        if low > high:
            raise UserError(f"--{name} {low} {high}: the first number must not be above the second")
    if options.colorjitter[3] > _MAX_HUE:
        hue = options.colorjitter[3]
        raise UserError(f"--colorjitter: the fourth number, hue, is {hue}; at most {_MAX_HUE} is possible")
    if not options.protocol:
        raise UserError("--protocol names nothing; name one or more of knn, nn, linear, cluster, or leave it out")
    if options.resize is not None and options.resize < options.size:
        raise UserError(f"--resize {options.resize} is below --size {options.size}; raise it, or leave it null")
    if options.shrink is not None and options.shrink < options.size:
        raise UserError(f"--shrink {options.shrink} is below --size {options.size}; raise it, or leave it null")
    if options.labels is not None and options.dataset != "photos":
        raise UserError(
            f"--labels is for --dataset photos; {options.dataset} brings its own labels, if it has any; leave it null"
        )
    if options.first_round >= options.max_round:
        raise UserError(
            f"--first-round {options.first_round} leaves no round of --max-round {options.max_round}; raise "
            "--max-round, which counts round 0 even where it is left out"
        )
    if options.lr_policy == "multistep":
        _check_schedule(options)
    if options.optimizer == "sgd" and options.nesterov:
        if options.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0; add --no-nesterov")
        if options.dampening != 0:
            raise UserError(f"--nesterov needs --dampening 0, not {options.dampening}; or add --no-nesterov")
    for name in ("restart", "report_only"):
        if getattr(options, name) and options.resume is None:
            raise UserError(f"--{name.replace('_', '-')} needs --resume with the checkpoint to use")
    if options.compare and (options.resume is not None or options.session is not None):
        raise UserError("--compare trains nothing and evaluates nothing; leave out --resume and --session")
    _check_use(options)
    if options.session is not None and options.resume is not None and not options.restart:
        raise UserError(
            "--session names a new session and --resume continues an old one; add --restart to continue in a new one"
        )


def _check_use(options: Options) -> None:
    wanted = [flag for flag in ("test_only", "export", "embed") if getattr(options, flag)]
    names = ["--" + flag.replace("_", "-") for flag in wanted]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are separate calls; give one of them")
    if names and options.resume is None and options.pretrained is None:
        raise UserError(f"{names[0]} needs --resume with the checkpoint to use, or --pretrained with a file of weights")
    if options.output is not None and options.embed is None:
        raise UserError("--output is the folder of --embed; --export names its own folder")
    if options.overwrite and options.embed is None and options.export is None:
        raise UserError("--overwrite goes with --export or --embed")


def _check_schedule(options: Options) -> None:
    epochs = options.lr_schedule
    if not epochs:
        raise UserError("--lr-policy multistep needs --lr-schedule with the epochs of the decays, e.g. 120 160")
    if any(later <= earlier for earlier, later in zip(epochs, epochs[1:])):
        raise UserError(f"--lr-schedule {' '.join(map(str, epochs))}: the epochs must increase")
