"""Options: one table, and four places their values come from.

Defaults, the options kept in a checkpoint, YAML files and the command line are merged by `collect`, later
ones over earlier ones. Nothing here imports PyTorch, so `--help` and mistakes answer at once.
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
