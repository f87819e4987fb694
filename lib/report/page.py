"""Assembles report.html from a session's files and its training images."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from torch import Tensor

from datasets.image_set import ImageSet
from lib.checkpoint.manager import newest_by_round
from lib.clustering.clusters import clusters_of
from lib.config import value_text
from lib.config.option import AUTO
from lib.errors import UserError
from lib.evaluation.baselines import shared_in, shared_text
from lib.evaluation.features import FeatureSpace
from lib.export.kept_features import KeptFeatures, rounded
from lib.figures.charts import Curve, curves
from lib.report.feature_map import map_section
from lib.report.galleries import Certainty, anchors_with_neighbours, contact_sheets, most_and_least_certain
from lib.report.pictures import Pictures, evenly, sample
from lib.report.rounds import RoundView, checked, quality, view
from lib.report.template import render
from lib.search.exact import sample_rows
from lib.seeding import derive
from lib.session.folder import SessionFolder
from lib.session.records import SessionRecord, result_text, result_words

ATTENTION_IMAGES = 6
"""Images whose attention maps are shown over the rounds."""
ATTENTION_ROUNDS = 5
"""Rounds whose attention maps are shown: the first, the last, and some between them."""
ON_THE_MAP = 600
"""Images that the map shows, a random sample fixed by the seed."""
EPOCH_ROWS = 1000
"""The most rows of the table of epochs; of a longer run every second or third epoch is shown, and so on."""


def assemble(session: SessionFolder, pictures: Pictures, fingerprint: str, kept: dict[Any, RoundView]) -> str:
    """The HTML of the page.

    Args:
        pictures: of the training images of the session.
        fingerprint: of these.
        kept: a cache of earlier rounds by file and time of change, which is updated.

    Raises:
        UserError: there is no checkpoint, it belongs to other images, or an image cannot be read.
    """
    images = pictures.images
    record = SessionRecord.read(session.path, "session")
    files = newest_by_round(session.path)
    if not files:
        raise UserError(f"session {session.path} has no checkpoint yet, and so nothing to report")
    newest = checked(files[max(files)], images, fingerprint)
    watched = evenly(len(images), ATTENTION_IMAGES)
    views = _views(files, newest, images, fingerprint, watched, kept)
    last_view = views[-1]
    kept_features = _kept_features(record, files[max(files)], newest)
    features = newest["npc"]["memory"].float() if kept_features is None else kept_features.train
    seed = derive(newest["options"].get("seed", 0), "report")
    certainty = Certainty.measured(last_view.found, features, newest["options"]["npc_temperature"], seed)
    most, least = most_and_least_certain(certainty, pictures)
    return render(
        "report.html",
        record=record,
        pictures=pictures,
        small=min(pictures.thumbnail(watched[0]).size) <= 32,
        **_run(record, newest),
        **_results(record, newest, len(images)),
        quality=quality(record, views, pictures),
        last_view=last_view,
        features=None if kept_features is None else str(kept_features.space),
        certainty=certainty,
        groups=anchors_with_neighbours(last_view.found, certainty, features, pictures),
        **_map_and_clusters(record, newest, kept_features, features, pictures, seed),
        most=most,
        least=least,
        watched=[pictures.picture(index) for index in watched],
        attention_views=[views[index] for index in _spread(len(views), ATTENTION_ROUNDS)],
    )


def _run(record: SessionRecord, newest: dict[str, Any]) -> dict[str, Any]:
    """The provenance of the run: command, versions, data and options."""
    return {
        "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "start": record.starts[-1] if record.starts else None,
        "data": newest["dataset"],
        "options": [(name, value_text(value)) for name, value in record.options.items()],
        "changed": [(name, value_text(now), value_text(usual)) for name, (now, usual) in record.changed.items()],
    }


def _results(record: SessionRecord, newest: dict[str, Any], images: int) -> dict[str, Any]:
    """Results by round and epoch, and the baselines without learning."""
    shared = shared_in(record.epochs[-1]) if record.epochs else None
    return {
        "rounds": record.rounds,
        "baselines": newest.get("baselines", {}),
        "beside_pixels": None if shared is None else shared_text(shared, images),
        "charts": _charts(record, images),
        "results": [(result_words(key), result_text(key, value)) for key, value in record.results.items()],
        "epochs": record.epochs[:: max(1, -(-len(record.epochs) // EPOCH_ROWS))],
    }


def _map_and_clusters(
    record: SessionRecord,
    newest: dict[str, Any],
    kept_features: Optional[KeptFeatures],
    features: Tensor,
    pictures: Pictures,
    seed: int,
) -> dict[str, Any]:
    """The map of the features, coloured by their clusters, and the sheets of the clusters."""
    clusters = clusters_of(
        newest.get("clusters") if kept_features is None else None,
        features,
        newest["options"].get("num_clusters", AUTO),
        newest["options"].get("seed", 0),
    )
    rows = sample_rows(len(features)).numpy()
    sheets = contact_sheets(rows, features, pictures, clusters)
    mapped = sample(len(rows), ON_THE_MAP, seed)
    return {
        "map": map_section(rows[mapped], features, pictures, sheets.assignments[mapped]),
        "sheets": sheets,
        "other_counts": _other_counts(record, sheets.count),
    }


def _kept_features(record: SessionRecord, file: Path, saved: dict[str, Any]) -> Optional[KeptFeatures]:
    """The training features that the session's options ask for, if they are those of this checkpoint's network; None
    where the memory bank is used instead.

    Raises:
        UserError: as `KeptFeatures.read`.
    """
    wanted = FeatureSpace(record.value("features"), record.value("whiten"))
    kept = None if wanted.is_plain else KeptFeatures.of_checkpoint(file, saved)
    if kept is None or not kept.space.is_like(wanted):
        return None
    return replace(kept, train=rounded(kept.train))


def _other_counts(record: SessionRecord, count: int) -> list[tuple[str, int]]:
    """Other counts of the clusters that differ from `count`: their source in words, and the number."""
    sizes = record.latest("clusters")
    counts = [
        ("the memory bank after the last finished round", len(sizes) if isinstance(sizes, list) else None),
        ("the recomputed features of all training images (--protocol cluster)", record.results.get("cluster_count")),
    ]
    return [(words, int(number)) for words, number in counts if number is not None and number != count]


def _views(
    files: dict[int, Path],
    newest: dict[str, Any],
    images: ImageSet,
    fingerprint: str,
    watched: Sequence[int],
    kept: dict[Any, RoundView],
) -> list[RoundView]:
    """The view of every round that has a checkpoint, in order."""
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
    """The first, the last and some between of `count` indices."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


def _charts(record: SessionRecord, images: int) -> list[tuple[str, Any, str]]:
    """Caption, figure and explanation of each curve over the epochs of the run."""
    x = [record.run_epoch(epoch) for epoch in record.epochs]
    borders = [
        record.run_epoch(epoch)
        for epoch, after in zip(record.epochs, record.epochs[1:])
        if epoch["round"] != after["round"]
    ]

    def chart(name: str, caption: str, key: str, up: str, note: str, **keywords: bool) -> Optional[tuple]:
        line = Curve(up, x, [epoch.get(key) for epoch in record.epochs])
        if not line.points:
            return None
        first, last = line.points[0][1], line.points[-1][1]
        shown = (lambda value: f"{100 * value:.2f} %") if keywords.get("percent") else (lambda value: f"{value:.4g}")
        described = f"{caption} over {len(x)} epochs, from {shown(first)} to {shown(last)}"
        return caption, curves(name, described, "epochs completed", up, [line], borders, **keywords), note

    falls = "It falls once over the run." if record.value("lr_policy") == "cosine" else "It restarts in every round."
    found = (
        chart(
            "loss", "Loss", "loss", "mean loss",
            f"Chance is log N = {math.log(images):.2f} in round 0. Each round has a loss of its own.",
        ),
        chart(
            "accuracy", f"{record.evaluated_by} accuracy", "knn_top1", "top-1", "By the rows of the memory bank.",
            percent=True,
        ),
        chart("rate", "Learning rate", "lr", "learning rate", falls, logarithmic=True),
    )  # fmt: skip
    return [each for each in found if each is not None]
