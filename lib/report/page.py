"""report.html: from a session's files and its training images to the text of the page."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from datasets.image_set import ImageSet
from lib.config import value_text
from lib.errors import UserError
from lib.evaluation.features import FeatureSpace
from lib.export.kept_features import KeptFeatures, rounded
from lib.figures.charts import Curve, curves
from lib.report.feature_map import map_section
from lib.report.galleries import Certainty, anchors_with_neighbours, contact_sheets, ends
from lib.report.pictures import Pictures, evenly, sample
from lib.report.rounds import RoundView, checked, quality, view
from lib.report.template import render
from lib.seeding import derive
from lib.session.folder import SessionFolder
from lib.session.records import SessionRecord, result_text, result_words

WATCHED = 6
"""Images whose attention is followed over the rounds."""
ROUNDS_WATCHED = 5
"""Rounds in which it is: the first, the last, and some between them."""
ON_THE_MAP, CLUSTERED = 600, 3000
"""Images that the map and the clusters show, a random sample fixed by the seed."""
EPOCH_ROWS = 1000
"""Lines of the table of epochs; of a longer run every second one is shown, or every third ..."""


def assemble(session: SessionFolder, pictures: Pictures, fingerprint: str, kept: dict[Any, RoundView]) -> str:
    """The page.

    Args:
        pictures: of the training images of the session.
        fingerprint: of these.
        kept: what was seen of rounds before, by file and time of change; what is seen now is added.

    Raises:
        UserError: there is no checkpoint, it belongs to other images, or an image cannot be read.
    """
    images = pictures.images
    story = SessionRecord.read(session.path, "session")
    files = session.checkpoints_by_round()
    if not files:
        raise UserError(f"session {session.path} has no checkpoint yet, and so nothing to report")
    newest = checked(files[max(files)], images, fingerprint)
    memory, seed = newest["npc"]["memory"].float(), derive(newest["options"].get("seed", 0), "report")
    watched = evenly(len(images), WATCHED)
    views = _views(files, newest, images, fingerprint, watched, kept)
    here = views[-1]
    kept_features = _kept_features(story, files[max(files)], newest)
    features = memory if kept_features is None else kept_features.train
    certainty = Certainty.measured(here.found, features, newest["options"]["npc_temperature"], seed)
    clustered = sample(len(images), CLUSTERED, seed)
    sheets = contact_sheets(clustered, features, pictures, seed)
    mapped = sample(len(clustered), ON_THE_MAP, seed)
    most, least = ends(certainty, pictures)
    looked = [views[place] for place in _spread(len(views), ROUNDS_WATCHED)]
    return render(
        "report.html",
        story=story,
        rounds=story.rounds,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        start=story.starts[-1] if story.starts else None,
        options=[(name, value_text(value)) for name, value in story.options.items()],
        changed=[(name, value_text(now), value_text(usual)) for name, (now, usual) in story.changed.items()],
        data=newest["dataset"],
        baselines=newest.get("baselines", {}),
        pictures=pictures,
        charts=_charts(story, len(images)),
        findings=[(result_words(key), result_text(key, value)) for key, value in story.findings.items()],
        epochs=story.epochs[:: max(1, -(-len(story.epochs) // EPOCH_ROWS))],
        quality=quality(story, views, pictures),
        here=here,
        certainty=certainty,
        groups=anchors_with_neighbours(here.found, certainty, features, pictures),
        features=None if kept_features is None else str(kept_features.space),
        map=map_section(clustered[mapped], features, pictures, sheets.assignments[mapped]),
        sheets=sheets,
        most=most,
        least=least,
        watched=[pictures.picture(index) for index in watched],
        looked=looked,
        small=min(pictures.thumbnail(watched[0]).size) <= 32,
    )


def _kept_features(story: SessionRecord, file: Path, saved: dict[str, Any]) -> Optional[KeptFeatures]:
    """The training features that the session's options ask for, if they are those of this checkpoint's network; None
    where the memory bank stands for them.

    Raises:
        UserError: as `KeptFeatures.read`.
    """
    wanted = FeatureSpace(story.value("features"), story.value("whiten"))
    kept = None if wanted.is_plain else KeptFeatures.of_checkpoint(file, saved)
    if kept is None or not kept.space.is_like(wanted):
        return None
    return replace(kept, train=rounded(kept.train))


def _views(
    files: dict[int, Path],
    newest: dict[str, Any],
    images: ImageSet,
    fingerprint: str,
    watched: Sequence[int],
    kept: dict[Any, RoundView],
) -> list[RoundView]:
    """Of every round that left a checkpoint, in order."""
    views = []
    for number, path in files.items():
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_ino)
        if key not in kept:
            saved = newest if number == max(files) else checked(path, images, fingerprint)
            kept[key] = view(saved, images, watched)
        views.append(kept[key])
    return views


def _spread(count: int, wanted: int) -> list[int]:
    """The first, the last and some between of `count` places."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


def _charts(story: SessionRecord, images: int) -> list[tuple[str, Any, str]]:
    """Caption, figure and explanation of each curve over the epochs of the run."""
    x = [story.run_epoch(epoch) for epoch in story.epochs]
    borders = [story.run_epoch(entry.last) for entry in story.rounds[:-1]]

    def chart(name: str, caption: str, key: str, up: str, note: str, **keywords: bool) -> Optional[tuple]:
        line = Curve(up, x, [epoch.get(key) for epoch in story.epochs])
        if not line.points:
            return None
        first, last = line.points[0][1], line.points[-1][1]
        shown = (lambda value: f"{100 * value:.2f} %") if keywords.get("percent") else (lambda value: f"{value:.4g}")
        described = f"{caption} over {len(x)} epochs, from {shown(first)} to {shown(last)}"
        return caption, curves(name, described, "epochs completed", up, [line], borders, **keywords), note

    found = (
        chart(
            "loss", "Loss", "loss", "mean loss",
            f"Chance is log N = {math.log(images):.2f} in round 0. Each round has a loss of its own.",
        ),
        chart(
            "accuracy", f"{story.judge} accuracy", "knn_top1", "top-1", "By the rows of the memory bank.", percent=True,
        ),
        chart("rate", "Learning rate", "lr", "learning rate", "It starts anew in every round.", logarithmic=True),
    )  # fmt: skip
    return [each for each in found if each is not None]
