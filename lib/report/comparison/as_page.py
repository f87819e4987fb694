"""The comparison as a page."""

import datetime
from typing import Any

from lib.figures.charts import Curve, curves
from lib.figures.inks import CSS_NAMES, dash, series
from lib.report.comparison.contrast import Contrast
from lib.report.page import render


def as_page(contrast: Contrast) -> str:
    """The text of the page."""
    legend = [
        {"letter": letter, "label": label, "story": story, "colour": CSS_NAMES[series(place)], "dashes": dash(place)}
        for place, (letter, label, story) in enumerate(contrast.rows())
    ]
    return render(
        "compare.html",
        legend=legend,
        notes=contrast.notes,
        tables=[
            {"title": title[0].upper() + title[1:], "head": head, "body": body}
            for title, (head, body) in contrast.tables().items()
        ],
        charts=_charts(contrast),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )


def _charts(contrast: Contrast) -> list[tuple[str, Any]]:
    """Caption and figure of every curve that any session has."""
    charts = []
    for name, caption, key, keywords in (
        ("accuracy", "Top-1 accuracy", "knn_top1", {"percent": True}),
        ("loss", "Loss", "loss", {}),
        ("entropy", "Mean entropy", "entropy", {}),
        ("cosine", "Mean cosine with the nearest", "neighbour_cosine", {}),
        ("rate", "Learning rate", "lr", {"logarithmic": True}),
    ):
        points = [contrast.curve(place, key) for place in range(len(contrast.stories))]
        charts.append((caption, _chart(name, caption, "epochs completed", contrast, points, **keywords)))
    points = [
        [(entry.number, entry.consistency) for entry in story.rounds if entry.consistency is not None]
        for story in contrast.stories
    ]
    charts.append(
        ("Consistent pairs", _chart("consistency", "Consistent pairs", "round", contrast, points, percent=True))
    )
    return [(caption, chart) for caption, chart in charts if chart is not None]


def _chart(name: str, caption: str, across: str, contrast: Contrast, points: list, **keywords: bool) -> Any:
    lines = [
        Curve(label, [x for x, _ in own], [y for _, y in own], place)
        for place, (own, label) in enumerate(zip(points, contrast.labels))
    ]
    described = f"{caption} of {len(lines)} sessions; the table of results has the figures"
    return curves(name, described, across, caption.lower(), lines, **keywords)
