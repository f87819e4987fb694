"""One plot for each item: our means with their intervals, and the published values beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from benchmarks.paper.items import Item, Row
from benchmarks.paper.statistics import Mean

_OURS, _PUBLISHED = "#4878a8", "#c44e52"


def plot(item: Item, means: Mapping[Row, Optional[Mean]], path: Path) -> None:
    """Draw an item into an SVG file. Published values have axes of their own, since they are on other images.

    Args:
        means: of each row, as fractions of 1; None without runs.
    """
    from lib.figures import default_settings

    rows = [row for row in item.rows if means.get(row) is not None or row.published is not None]
    published = [(place, row.published) for place, row in enumerate(rows) if row.published is not None]
    panels = 2 if published else 1
    with default_settings():
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        matplotlib.rcParams["svg.hashsalt"] = item.name  # the same file from the same numbers
        matplotlib.rcParams["svg.fonttype"] = "none"
        figure = Figure(figsize=(3 + 3 * panels, 1.4 + 0.34 * len(rows)))
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        for place, row in enumerate(rows):
            mean = means.get(row)
            if mean is None:
                continue
            low, high = mean.interval or (mean.mean, mean.mean)
            axes[0].plot([100 * low, 100 * high], [place, place], color=_OURS, linewidth=2, solid_capstyle="butt")
            axes[0].plot([100 * mean.mean], [place], "o", color=_OURS)
        axes[0].set_title("ours, mean and 95 % interval", fontsize=10)
        if published:
            axes[1].plot([share for _, share in published], [place for place, _ in published], "D", color=_PUBLISHED)
            axes[1].set_title("published", fontsize=10)
        axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        for each in axes:
            each.set_xlabel("%")
            each.grid(axis="x", alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
