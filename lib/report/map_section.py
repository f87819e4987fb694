"""The map of the features: a figure of dots, and what the page needs to show the image behind each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import Tensor

from lib.figures.charts import scatter
from lib.figures.inks import CSS_NAMES, FAINT, SERIES
from lib.report.feature_map import layout
from lib.report.pictures import Pictures

COLUMNS = 25
"""Thumbnails side by side on the sheet."""
TILE = 40
"""Pixels of a thumbnail on the sheet, at most: 600 of them take about half a MB."""
NO_LABEL = "no label"


@dataclass(frozen=True)
class LegendEntry:
    """A colour of the map and what it stands for."""

    colour: str
    name: str


@dataclass(frozen=True)
class MapSection:
    """Everything the template needs.

    Attributes:
        method: `t-SNE` or `PCA`.
        figure: the dots.
        points: for the script: place (x, y) from the upper left, as shares of the figure, and a text for each dot.
        sheet: data URI of the thumbnails in the order of the points.
        columns, rows: of the sheet.
        legend: of the colours.
        coloured_by: `class` or `cluster`.
        pixelated: whether the thumbnails are tiny and must not be blurred when enlarged.
    """

    method: str
    figure: Markup
    points: list[list[Any]]
    sheet: str
    columns: int
    rows: int
    legend: list[LegendEntry]
    coloured_by: str
    pixelated: bool


def map_section(rows: np.ndarray, features: Tensor, pictures: Pictures, groups: np.ndarray) -> MapSection:
    """Lay out the features of some images.

    Args:
        rows: (n,) which images.
        groups: (n,) the cluster of each, which colours it where there are no labels.
    """
    method, places = layout(features[rows].numpy())
    if pictures.labelled:
        coloured_by, names = "class", [*pictures.classes, NO_LABEL]
        found = [pictures.label_number(row) for row in rows.tolist()]
        numbers = [len(names) - 1 if number is None else number for number in found]
    else:
        coloured_by, numbers = "cluster", groups.tolist()
        names = [f"cluster {number + 1}" for number in range(max(numbers) + 1)]
    colours = [*_colours(len(pictures.classes)), FAINT] if pictures.labelled else _colours(len(names))
    described = f"{method} of the features of {len(rows)} images, coloured by {coloured_by}"
    points = []
    for place, row, number in zip(places.tolist(), rows.tolist(), numbers):
        named = names[number] == NO_LABEL or coloured_by == "cluster"
        text = f"{pictures.name(row)}, {names[number] if named else f'class {names[number]}'}"
        points.append([round(place[0], 4), round(1 - place[1], 4), text])
    tile = min(TILE, *(pictures.thumbnail(row).size[0] for row in rows.tolist()))
    present = sorted(set(numbers))
    legend = [LegendEntry(CSS_NAMES.get(colours[number], colours[number]), names[number]) for number in present]
    return MapSection(
        method,
        scatter("map", described, [tuple(place) for place in places.tolist()], numbers, colours),
        points,
        pictures.sheet(rows.tolist(), COLUMNS, tile),
        COLUMNS,
        -(-len(rows) // COLUMNS),
        legend,
        coloured_by,
        tile < TILE,
    )


def _colours(count: int) -> list[str]:
    """The page's colours while they suffice, else as many hues; many of these are hard to tell apart."""
    if count <= len(SERIES):
        return list(SERIES[:count])
    import colorsys

    hues = [colorsys.hls_to_rgb(number / count, (0.42, 0.52, 0.62)[number % 3], 0.75) for number in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in hue) for hue in hues]
