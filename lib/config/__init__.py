"""The options, and their values from four sources.

`collect` merges the defaults, the options in a checkpoint, YAML files and the command line; later sources override
earlier ones. Nothing here imports PyTorch, so `--help` and errors in the call are printed at once.
"""

from lib.config.merge import collect
from lib.config.option import Option
from lib.config.options import OPTIONS, Options, Settings, in_effect, of_older_version
from lib.config.render import markdown, table, value_text
from lib.config.yaml_file import to_yaml

__all__ = [
    "OPTIONS",
    "Option",
    "Options",
    "Settings",
    "collect",
    "in_effect",
    "markdown",
    "of_older_version",
    "table",
    "to_yaml",
    "value_text",
]
