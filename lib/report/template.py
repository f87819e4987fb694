"""Renders a template and writes the page atomically."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lib.logger.console import duration
from lib.runtime.atomic import replace_file

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, **values: Any) -> str:
    """The page of a template; every value is escaped unless it is `Markup`."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    """The templates' environment, made once: a run renders a page after every round."""
    environment = Environment(
        loader=FileSystemLoader(str(TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, fixed=fixed, duration=duration)
    environment.globals.update(style=_part("style.css"), script=_part("map.js"), script_hash=_hash("map.js"))
    return environment


def write_page(text: str, path: Path) -> None:
    """Write beside `path`, then move into place. Names that are not valid text show a replacement character.

    Raises:
        OSError: writing fails; what was at `path` before is untouched.
    """
    replace_file(path, lambda file: file.write(text.encode("utf-8", "replace")), flush=False)


def percent(share: Any, places: int = 2) -> str:
    """0.98056 -> 98.06 %; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.{places}f} %"


def number(value: Any, digits: int = 4) -> str:
    """To `digits` significant digits, whole numbers with a thousands separator; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def fixed(value: Any, places: int = 3) -> str:
    """With `places` decimals; a dash for None."""
    return "–" if value is None else f"{value:.{places}f}"


def _part(name: str) -> Markup:
    """A file of this package that goes into the page unescaped."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8").strip())


def _hash(name: str) -> str:
    """The hash by which the page's content security policy allows this script and no other."""
    digest = hashlib.sha256(str(_part(name)).encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()
