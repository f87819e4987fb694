"""Contact sheets: what the clusters of the features look like."""

from collections import Counter
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from lib.clustering.kmeans import spherical_kmeans
from lib.clustering.number import choose_number
from lib.report.pictures import Picture, Pictures

MOST_SHOWN, MOST_CLASSES = 12, 50
"""Clusters on the page, and classes up to which there are as many clusters as these."""
ON_A_SHEET = 12
"""Images of a contact sheet."""
RESTARTS = 2
"""Runs of k-means, of which the better counts: enough for a look."""


@dataclass(frozen=True)
class Cluster:
    """Images that belong together.

    Attributes:
        number: from 1, the largest first.
        size: images of the sample in it.
        pictures: those closest to its centre, the closest first.
        closeness: mean cosine of its images with its centre.
        commonest, share: the most frequent class and its share of the labelled ones; None without labels.
    """

    number: int
    size: int
    pictures: list[Picture]
    closeness: float
    commonest: Optional[str]
    share: Optional[float]


@dataclass(frozen=True)
class ContactSheets:
    """The clusters of a sample of images.

    Attributes:
        shown: the largest ones.
        count: how many there are.
        why: how the number came about, in words.
        images: how many were clustered.
        assignments: (images,) int64, the cluster of each, from 0.
    """

    shown: list[Cluster]
    count: int
    why: str
    images: int
    assignments: np.ndarray


def contact_sheets(rows: np.ndarray, features: Tensor, pictures: Pictures, seed: int) -> ContactSheets:
    """Cluster the features of some images.

    As many clusters as classes where the classes are known and not too many, otherwise as many as the features suggest.

    Args:
        rows: (n,) which images, n at least 2.
    """
    features = torch.nn.functional.normalize(features[torch.from_numpy(rows)], dim=1)
    classes = len(pictures.classes)
    if 2 <= classes <= min(MOST_CLASSES, len(rows)):
        count, why = classes, "as many as there are classes"
    else:
        found = choose_number(features, seed)
        count, why = found.clusters, f"the number suggested by the features themselves: {found.explanation}"
    clustering = spherical_kmeans(features, count, seed, RESTARTS)
    assignments = clustering.assignments.numpy()
    cosines = (features * clustering.centres[clustering.assignments]).sum(dim=1).numpy()
    shown = [
        _cluster(number, rows[assignments == number], cosines[assignments == number], pictures)
        for number in range(min(count, MOST_SHOWN))
        if (assignments == number).any()
    ]
    return ContactSheets(shown, int(clustering.sizes.gt(0).sum()), why, len(rows), assignments)


def _cluster(number: int, rows: np.ndarray, cosines: np.ndarray, pictures: Pictures) -> Cluster:
    closest = rows[np.argsort(-cosines, kind="stable")[:ON_A_SHEET]]
    commonest = share = None
    if pictures.labelled:
        labels = Counter(filter(None, map(pictures.label, rows.tolist())))
        if labels:
            commonest, count = labels.most_common(1)[0]
            share = count / sum(labels.values())
    shown = [pictures.picture(row) for row in closest.tolist()]
    return Cluster(number + 1, len(rows), shown, float(cosines.mean()), commonest, share)
