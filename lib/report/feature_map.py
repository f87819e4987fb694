"""The map of the features: a scatter plot, and the thumbnail and text of each point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import Tensor

from lib.figures.charts import CSS_NAMES, FAINT, SERIES, scatter
from lib.report.pictures import Pictures

COLUMNS = 25
"""Thumbnails in a row of the sheet."""
TILE = 40
"""Pixels of a thumbnail on the sheet, at most: 600 of them take about half a MB."""
PERPLEXITY = 30
"""t-SNE's perplexity: about how many neighbours determine the position of each image."""
FEWEST_FOR_TSNE = 30
"""With fewer images the two directions of largest spread (PCA) are shown."""
NO_LABEL = "no label"


@dataclass(frozen=True)
class LegendEntry:
    """A colour of the map and its meaning."""

    colour: str
    name: str


@dataclass(frozen=True)
class MapSection:
    """The values that the template shows.

    Attributes:
        method: `t-SNE` or `PCA`.
        figure: the dots.
        points: for the script: position (x, y) from the upper left, as shares of the figure, and a text for each dot.
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
        rows: (n,) row numbers of the images.
        groups: (n,) the cluster of each image, which gives its colour where there are no labels.
    """
    method, positions = layout(features[rows].numpy())
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
    for position, row, number in zip(positions.tolist(), rows.tolist(), numbers):
        named = names[number] == NO_LABEL or coloured_by == "cluster"
        text = f"{pictures.name(row)}, {names[number] if named else f'class {names[number]}'}"
        points.append([round(position[0], 4), round(1 - position[1], 4), text])
    tile = min(TILE, max(pictures.thumbnail(row).size[0] for row in rows.tolist()))
    present = sorted(set(numbers))
    legend = [LegendEntry(CSS_NAMES.get(colours[number], colours[number]), names[number]) for number in present]
    return MapSection(
        method,
        scatter("map", described, [tuple(position) for position in positions.tolist()], numbers, colours),
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


def layout(features: np.ndarray) -> tuple[str, np.ndarray]:
    """Positions of features in the unit square.

    The same features give the same positions: t-SNE begins at the PCA and computes on one thread.

    Args:
        features: (n, D) unit rows.

    Returns:
        `t-SNE` or `PCA`, and (n, 2) float64 from 0.03 to 0.97.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    if len(features) < FEWEST_FOR_TSNE:
        return "PCA", _in_unit_square(_principal(centred))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = _principal(centred)
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its PCA initialisation
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), learning_rate="auto", random_state=0)
    with threadpool_limits(1):
        return "t-SNE", _in_unit_square(tsne.fit_transform(features.astype(np.float32)).astype(np.float64))


def _principal(centred: np.ndarray) -> np.ndarray:
    """(n, 2): coordinates along the two directions of largest spread, signed so that the largest entry is positive."""
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    positions = np.zeros((len(centred), 2))
    for axis, direction in enumerate(directions[:2]):
        positions[:, axis] = centred @ direction * np.sign(direction[np.abs(direction).argmax()])
    return positions


def _in_unit_square(positions: np.ndarray) -> np.ndarray:
    """The positions moved and scaled into the unit square, both axes alike."""
    middle = (positions.max(axis=0) + positions.min(axis=0)) / 2
    extent = max((positions.max(axis=0) - positions.min(axis=0)).max(), 1e-12)
    return 0.5 + 0.94 * (positions - middle) / extent
