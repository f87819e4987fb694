"""Charts by matplotlib, as <svg> elements of a page: curves over epochs, bars over rounds, dots of a map.

The page has the legends, which wrap there. Colours in a figure are stand-ins: the page's style.css defines each for
light and dark.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional
from xml.etree import ElementTree

from markupsafe import Markup

from lib.figures import default_settings, importing_matplotlib

with importing_matplotlib():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH, HEIGHT = 5.0, 3.0
"""Inches of 72 CSS pixels: as wide as a phone, so that text of 10 pixels stays legible there."""

INK = "#010203"
"""Text and axes."""
FAINT = "#020304"
"""Grid lines."""
BORDER = "#060708"
"""Ends of rounds, in a visible colour."""
GOOD, BAD = "#030405", "#040506"
"""Pairs with equal labels, and with different ones."""
SERIES = tuple(f"#0a0b{number:02x}" for number in range(10))
"""Colours of lines and groups, to distinguish them."""

DASHES = ("none", "6 3", "2 2", "8 3 2 3", "10 4")
"""stroke-dasharray by line number, so that lines differ without colours."""

CSS_NAMES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    BORDER: "var(--muted)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    **{stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES)},
}
"""The page's colour for each stand-in."""

# text is not drawn as outlines; the same figure gives the same ids
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "and"}
_STAND_IN = re.compile("|".join(CSS_NAMES))
_FONT = re.compile(r"font:\s*(?:[\w-]+\s+)*?(\d+(?:\.\d+)?)px[^;]*")


def series(number: int) -> str:
    """The stand-in colour of a line or group; they repeat after the last."""
    return SERIES[number % len(SERIES)]


def dash(number: int) -> str:
    """The stroke-dasharray of a line. Changes slower than the colour, so that 50 lines differ."""
    return DASHES[(number + number // len(SERIES)) % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """A line of a chart; gaps where y is None."""

    label: str
    x: Sequence[float]
    y: Sequence[Optional[float]]
    number: int = 0
    """The line's number, which determines colour and dashes."""
    dashes: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dashes", dash(self.number))

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points that have a value."""
        return [(x, y) for x, y in zip(self.x, self.y) if y is not None]


@default_settings()
def curves(
    name: str,
    described: str,
    across: str,
    up: str,
    lines: Sequence[Curve],
    borders: Sequence[float] = (),
    percent: bool = False,
    logarithmic: bool = False,
) -> Optional[Markup]:
    """Lines over a common axis, or None if none of them has a point.

    Args:
        name, described: as `inline_svg`.
        across, up: what the axes show.
        borders: x of vertical lines: the ends of rounds.
        percent: values are shares of 1 and shown in per cent.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return None
    figure, axes = _empty(across, up)
    for border in borders:
        axes.axvline(border, color=BORDER, linewidth=1)
    for line in drawn:
        x, y = zip(*line.points)
        few = len(x) <= 40
        style: object = "-" if line.dashes == "none" else (0, tuple(float(part) / 1.5 for part in line.dashes.split()))
        axes.plot(
            x, y, color=series(line.number), linewidth=1.8, linestyle=style, marker="o" if few else None, markersize=2.8
        )
    if logarithmic:
        axes.set_yscale("log")
        axes.minorticks_off()
    elif percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    lowest, highest = min(min(line.x) for line in drawn), max(max(line.x) for line in drawn)
    if highest - lowest < 2:  # too narrow for whole numbers on the axis
        axes.set_xlim(lowest - 0.5, highest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    return inline_svg(figure, name, described)


@default_settings()
def bars(
    name: str, described: str, across: str, up: str, labels: Sequence[str], good: Sequence[int], bad: Sequence[int]
) -> Markup:
    """Two counts on top of each other for each label; the upper one is hatched, so that they differ without colours."""
    figure, axes = _empty(across, up)
    places = range(len(labels))
    width = min(0.7, 0.12 * len(labels))
    axes.bar(places, good, width, color=GOOD)
    axes.bar(places, bad, width, bottom=good, facecolor="none", edgecolor=BAD, hatch="////", linewidth=1.2)
    axes.set_xticks(list(places))
    axes.set_xticklabels(labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return inline_svg(figure, name, described)


@default_settings()
def scatter(
    name: str, described: str, places: Sequence[tuple[float, float]], groups: Sequence[int], colours: Sequence[str]
) -> Markup:
    """Dots without axes; (0, 0) is the lower left corner of the figure and (1, 1) the upper right one.

    Args:
        groups: of each dot, an index into `colours`.
    """
    figure = Figure(figsize=(WIDTH, WIDTH))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for group, colour in enumerate(colours):
        own = [place for place, of in zip(places, groups) if of == group]
        if own:
            axes.plot(*zip(*own), linestyle="none", marker="o", markersize=4.6, color=colour, markeredgewidth=0)
    return inline_svg(figure, name, described)


def _empty(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.16, 0.17, 0.81, 0.78))
    axes.patch.set_alpha(0)
    axes.set_xlabel(across, color=INK, fontsize=11)
    axes.set_ylabel(up, color=INK, fontsize=11)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    return figure, axes


def inline_svg(figure: Figure, name: str, described: str) -> Markup:
    """The figure as markup.

    Namespaces, metadata, style sheet and fixed size are removed: an <svg> within HTML needs none of them, and the page
    has its own style. Ids begin with the name, so that several figures share a page. Stand-in colours become the
    page's.

    Args:
        name: different from those of the other figures of the page; letters, digits and hyphens.
        described: the text for a screen reader.
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
