"""Galleries of the report: anchors with their neighbours, the most and least certain images, sheets of clusters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from lib.clustering.clusters import Clusters
from lib.figures.thumbnails import NEIGHBOURS_SHOWN
from lib.method.discovery import similarity_entropy
from lib.method.neighbourhoods import Neighbourhoods
from lib.report.pictures import Picture, Pictures, sample
from lib.search.exact import nearest

ANCHORS_IN_GROUP = 6
"""Anchors shown in a group."""
CERTAIN_SHOWN = 12
"""Images shown as the most certain, and as many as the least certain."""
LOGITS = 2**28
"""The approximate number of similarities that the report computes in round 0, where the run has no entropies."""
MOST_SHOWN = 12
"""The most clusters shown, the largest."""
ON_A_SHEET = 12
"""Images of a contact sheet."""


@dataclass(frozen=True)
class Certainty:
    """Entropies of some images.

    Attributes:
        rows: (Q,) int64, row numbers of the images, ascending.
        entropy: (Q,) float32, in nats.
        whole: whether these are all training images.
        of_round: whether the run computed them, at the start of the round; otherwise the report did, at its end.
    """

    rows: Tensor
    entropy: Tensor
    whole: bool
    of_round: bool

    @classmethod
    def measured(cls, found: Neighbourhoods, features: Tensor, temperature: float, seed: int) -> "Certainty":
        """The entropies of the round; in a round without any, those of a sample of the features."""
        if len(found.anchor_indexes) > 0:
            return cls(torch.arange(len(found.entropy)), found.entropy, True, True)
        count = max(256, LOGITS // len(features))
        rows = torch.from_numpy(sample(len(features), count, seed))
        entropy = similarity_entropy(features, temperature, queries=rows)
        return cls(rows, entropy, len(rows) == len(features), False)

    def of(self, rows: Tensor) -> Tensor:
        """The entropies of some of the rows."""
        return self.entropy[torch.searchsorted(self.rows, rows)]

    def ordered(self) -> Tensor:
        """The rows, the lowest entropy first."""
        return self.rows[torch.sort(self.entropy, stable=True).indices]


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of an anchor."""

    picture: Picture
    same: Optional[bool]
    """Whether it has the anchor's label; None without labels."""


@dataclass(frozen=True)
class Anchor:
    """An anchor and some of its neighbours."""

    picture: Picture
    entropy: float
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Group:
    """Anchors of similar entropy."""

    name: str
    anchors: list[Anchor]


def anchors_with_neighbours(
    found: Neighbourhoods, certainty: Certainty, features: Tensor, pictures: Pictures
) -> list[Group]:
    """Anchors of lowest, middle and highest entropy, each with its neighbours, nearest first.

    In round 0, which has no anchors, images of the sample take their place, each with its nearest neighbour by
    features.
    """
    if len(found.anchor_indexes) > 0:
        ordered, neighbours = found.anchor_indexes, found.neighbours
    else:
        ordered, neighbours = certainty.ordered(), None
    groups = []
    for name, places in _thirds(len(ordered)):
        rows = ordered[places]
        if neighbours is None:
            shown_neighbours = nearest(features[rows], features, 1, rows)[1]
        else:
            shown_neighbours = neighbours[places, :NEIGHBOURS_SHOWN]
        shown = zip(rows.tolist(), certainty.of(rows).tolist(), shown_neighbours.tolist())
        groups.append(Group(name, [_anchor(*each, pictures) for each in shown]))
    return groups


def _anchor(row: int, entropy: float, others: Sequence[int], pictures: Pictures) -> Anchor:
    shown_neighbours = [Neighbour(pictures.picture(other), pictures.same_class(row, other)) for other in others]
    return Anchor(pictures.picture(row), entropy, shown_neighbours)


def _thirds(count: int) -> list[tuple[str, slice]]:
    """The slices of the lowest, middle and highest of `count` ordered items, without overlap."""
    size = min(ANCHORS_IN_GROUP, count // 3)
    if size == 0:
        return [("All", slice(0, count))]
    middle = (count - size) // 2
    return [
        ("Lowest entropy", slice(0, size)),
        ("Middle entropy", slice(middle, middle + size)),
        ("Highest entropy", slice(count - size, count)),
    ]


@dataclass(frozen=True)
class CertainImage:
    """An image and its entropy."""

    picture: Picture
    entropy: float


def most_and_least_certain(certainty: Certainty, pictures: Pictures) -> tuple[list[CertainImage], list[CertainImage]]:
    """The most certain images, lowest entropy first, and the least certain, highest first; no image is in both."""
    order = torch.sort(certainty.entropy, stable=True).indices
    size = min(CERTAIN_SHOWN, len(order) // 2)

    def shown(places: Tensor) -> list[CertainImage]:
        found = zip(certainty.rows[places].tolist(), certainty.entropy[places].tolist())
        return [CertainImage(pictures.picture(row), entropy) for row, entropy in found]

    return shown(order[:size]), shown(order[len(order) - size :].flip(0))


@dataclass(frozen=True)
class ClusterSheet:
    """A cluster and the images closest to its centre.

    Attributes:
        number: from 1, the largest first.
        size: images of the sample in it.
        pictures: those closest to its centre, the closest first.
        cosine: mean cosine of its images with its centre.
        commonest, share: the most frequent class and its share of the labelled ones; None without labels.
    """

    number: int
    size: int
    pictures: list[Picture]
    cosine: float
    commonest: Optional[str]
    share: Optional[float]


@dataclass(frozen=True)
class ContactSheets:
    """The clusters of a sample of images.

    Attributes:
        shown: the largest ones.
        count: how many there are.
        explanation: how their number was chosen, in words.
        images: how many were clustered.
        assignments: (images,) int64, the cluster of each, from 0.
    """

    shown: list[ClusterSheet]
    count: int
    explanation: str
    images: int
    assignments: np.ndarray


def contact_sheets(rows: np.ndarray, features: Tensor, pictures: Pictures, clusters: Clusters) -> ContactSheets:
    """The images closest to the centre of each cluster.

    Args:
        rows: (n,) row numbers of the images, n at least 1.
        features: (N, D) unit rows of all training images.
        clusters: of these.
    """
    features = features[torch.from_numpy(rows)]
    numbers = clusters.assign(features)
    cosines = (features * clusters.centres[numbers]).sum(dim=1).numpy()
    assignments = numbers.numpy()
    present = np.unique(assignments).tolist()
    shown = [
        _cluster(number, rows[assignments == number], cosines[assignments == number], pictures)
        for number in present[:MOST_SHOWN]
    ]
    return ContactSheets(shown, len(present), clusters.explanation, len(rows), assignments)


def _cluster(number: int, rows: np.ndarray, cosines: np.ndarray, pictures: Pictures) -> ClusterSheet:
    closest = rows[np.argsort(-cosines, kind="stable")[:ON_A_SHEET]]
    commonest = share = None
    if pictures.labelled:
        labels = Counter(filter(None, map(pictures.label, rows.tolist())))
        if labels:
            commonest, count = labels.most_common(1)[0]
            share = count / sum(labels.values())
    shown = [pictures.picture(row) for row in closest.tolist()]
    return ClusterSheet(number + 1, len(rows), shown, float(cosines.mean()), commonest, share)
