"""From a matplotlib figure to an <svg> element that fits into a page."""

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lib.figures.inks import CSS_NAMES

_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "and"}  # text stays text; the same figure gives the same ids
_STAND_IN = re.compile("|".join(CSS_NAMES))
_FONT = re.compile(r"font:\s*(?:[\w-]+\s+)*?(\d+(?:\.\d+)?)px[^;]*")


def inline_svg(figure: Figure, name: str, described: str) -> Markup:
    """The figure as markup.

    Namespaces, metadata, style sheet and fixed size go: an <svg> within HTML needs none of them, and the page's own
    style holds. Ids begin with the name, so that several figures share a page. Stand-in colours become the page's.

    Args:
        name: different from those of the other figures of the page; letters, digits and hyphens.
        described: what a screen reader says in its place.
    """
    file = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = dict(element.attrib)
        element.attrib.clear()
        for key, value in attributes.items():
            element.set(_local(key), _rewritten(_local(key), value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "figure")
    root.set("role", "img")
    root.set("aria-label", described)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _rewritten(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    if key == "style":
        value = _FONT.sub(r"font-size: \1px", value)
    value = value.replace("url(#", f"url(#{name}-")
    return _STAND_IN.sub(lambda found: CSS_NAMES[found.group()], value)
