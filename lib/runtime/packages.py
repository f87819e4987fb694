"""Installed Python packages, looked up without importing them."""

import importlib.util
import re

from lib.errors import UserError


def has(name: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def check_packages() -> None:
    """Check that the installed PyTorch works with the installed NumPy and setuptools, before PyTorch is imported.

    Before 2.3 PyTorch warns at length about NumPy 2 and fails at the first array that they exchange; before 1.13 it
    needs a part of setuptools that version 70 dropped.

    Raises:
        UserError: the versions do not fit.
    """
    from importlib import metadata  # slow; `--help` does not need it

    found = {}
    for name in ("torch", "numpy", "setuptools"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "0"  # the import that needs it reports it
    torch, too_new = _release(found["torch"]), []
    if torch < (2, 3) and _release(found["numpy"]) >= (2,):
        too_new.append(("NumPy", found["numpy"], '"numpy<2"'))
    if torch < (1, 13) and _release(found["setuptools"]) >= (70,):
        too_new.append(("setuptools", found["setuptools"], '"setuptools<60"'))
    if too_new and found["torch"] != "0":
        names = " and ".join(f"{name} {version}" for name, version, _ in too_new)
        remedy = " ".join(older for _, _, older in too_new)
        raise UserError(f"PyTorch {found['torch']} does not work with {names}; pip install {remedy}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
