"""Use a trained network from Python, in a few lines.

    import and_discovery

    model = and_discovery.load("sessions/NAME")              # or a checkpoint, or a folder that --export wrote
    features = model.features(["a.jpg", "b.jpg"])            # (2, D) float32, rows of unit length
    paths, features = model.folder("pictures")               # every picture in a folder, at any depth
    similarities, rows = model.nearest(features, k=5)        # the most similar training images, by row

The name is that of the project in pyproject.toml: `and` alone is a keyword of Python. This file stands beside main.py,
so it is found from any working directory once that folder is on `sys.path`. Append it there: the packages beside it
have plain names (`datasets`, `models`, `lib`) that others use too. This module imports them as parts of a package
`_and_discovery`, so other packages of these names can be imported before it or after it.
"""

import builtins
import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any, Optional

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = ("datasets", "models", "lib")
_NAMESPACE = "_and_discovery"
"""The package under which this project's packages are imported, e.g. `_and_discovery.lib`."""


class _Finder:
    """A finder for sys.meta_path: the package `_and_discovery` and its modules."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        if name == _NAMESPACE:
            package = ModuleSpec(name, None, is_package=True)
            package.submodule_search_locations = [_HERE]
            return package
        if not name.startswith(f"{_NAMESPACE}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module in which `import lib` imports `_and_discovery.lib`."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _import(
    name: str, globals: Any = None, locals: Any = None, fromlist: Optional[tuple[str, ...]] = (), level: int = 0
) -> ModuleType:
    """Python's `__import__`, which takes the names in `_PACKAGES` from `_and_discovery`."""
    if level or name.partition(".")[0] not in _PACKAGES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{_NAMESPACE}.{name}", globals, locals, fromlist, 0)
    return module if fromlist else getattr(module, name.partition(".")[0])


def _is_own(name: str) -> bool:
    return (getattr(sys.modules.get(name), "__file__", None) or "").startswith(os.path.join(_HERE, name, ""))


if TYPE_CHECKING or ("lib" in sys.modules and all(_is_own(name) for name in _PACKAGES if name in sys.modules)):
    # main.py or another program of this project has imported them under their own names
    from lib.errors import RunError, UserError
    from lib.runtime.packages import check_packages

    check_packages()
    from lib.export.model import Model
    from lib.export.model import open_model as load
else:
    if not any(finder is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder)
    importlib.import_module(f"{_NAMESPACE}.lib.runtime.packages").check_packages()
    _errors = importlib.import_module(f"{_NAMESPACE}.lib.errors")
    RunError, UserError = _errors.RunError, _errors.UserError
    Model = importlib.import_module(f"{_NAMESPACE}.lib.export.model").Model
    load = importlib.import_module(f"{_NAMESPACE}.lib.export.model").open_model

__all__ = ["Model", "RunError", "UserError", "load"]
