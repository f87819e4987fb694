"""Merging the layers: defaults, checkpoint, config files, command line."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from lib.config import command_line, yaml_file
from lib.config.catalogue import OPTIONS
from lib.config.names import hint, shown
from lib.config.option import Option
from lib.config.render import help_text
from lib.config.rules import check_together
from lib.config.settings import Options, Settings
from lib.config.values import from_text, from_value
from lib.errors import UserError

_BY_NAME = {option.name: option for option in OPTIONS}

Layer = dict[str, Any]
"""Values by the options' names; what a layer does not mention is not in it."""


def collect(
    argv: Sequence[str], saved: Optional[Mapping[str, object]] = None, read: Optional[Mapping[str, Layer]] = None
) -> Settings:
    """Read the command line and the config files it names, and merge the layers.

    Args:
        argv: the command line, without the program's name.
        saved: the options stored in the checkpoint of `--resume`, or those that describe the network of
            `--pretrained`. The file is found through the options, so a caller that takes one collects twice; the
            options are checked against each other the second time.
        read: what the config files say, `Settings.files` of the first time: a file may be a pipe, which has nothing
            more to say the second time.

    Returns:
        the options: the defaults, over these `saved`, over these the config files from left to right, and the
        command line over all.

    Raises:
        UserError: a mistake in any of them, in one line.
        SystemExit: after `--help`, status 0.
    """
    if command_line.asks_for_help(argv):
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
    for name, raw in command_line.parse(argv).items():
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
            continue  # of an older version, or of the call that wrote it
        try:
            layer[name] = from_value(option, value)
        except ValueError as error:
            raise UserError(f"{place}: {name}: {error}") from None
    return layer
