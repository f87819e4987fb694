"""Which Python packages are installed, found out without loading them."""

import importlib.util
import re

from lib.errors import UserError


def has(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def check_packages() -> None:
    """Whether the installed PyTorch works with the NumPy and the setuptools beside it. To be called before PyTorch is
    loaded: before 2.3 it warns at length when it meets NumPy 2 and fails where it first exchanges an array, and before
    1.13 it needs a part of setuptools that version 70 dropped.

    Raises:
        UserError: it does not.
    """
    from importlib import metadata  # `--help` need not wait for it

    found = {}
    for name in ("torch", "numpy", "setuptools"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "0"  # where it is needed its import says so
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
