"""Pictures in order of certainty: anchors with their neighbours, and the images at both ends."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from lib.clustering.kmeans import spherical_kmeans
from lib.clustering.number import choose_number
from lib.method.discovery import similarity_entropy
from lib.method.neighbourhoods import Neighbourhoods
from lib.report.pictures import Picture, Pictures, sample
from lib.search.exact import nearest

GROUP = 6
"""Anchors shown in a group."""
NEIGHBOURS = 4
"""Neighbours shown of an anchor; it may have more."""
ENDS = 12
"""Images shown as the most and as the least certain."""
LOGITS = 2**28
"""In round 0, where the run measures no entropies, the report measures some: about so many similarities."""
MOST_SHOWN, MOST_CLASSES = 12, 50
"""Clusters on the page, and classes up to which there are as many clusters as these."""
ON_A_SHEET = 12
"""Images of a contact sheet."""
RESTARTS = 2
"""Runs of k-means, of which the better counts: enough for a look."""


@dataclass(frozen=True)
class Certainty:
    """Entropies of some images.

    Attributes:
        rows: (Q,) int64, which images, ascending.
        entropy: (Q,) float32, in nats.
        whole: whether these are all images.
        of_round: whether the run measured them, at the start of its round; otherwise the report did, at its end.
    """

    rows: Tensor
    entropy: Tensor
    whole: bool
    of_round: bool

    @classmethod
    def measured(cls, found: Neighbourhoods, features: Tensor, temperature: float, seed: int) -> "Certainty":
        """Those of the round; or, in a round without, those of a sample of the features."""
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
class Beside:
    """A neighbour of an anchor."""

    picture: Picture
    same: Optional[bool]
    """Whether it has the anchor's label; None without labels."""


@dataclass(frozen=True)
class Anchor:
    """An anchor and some of its neighbours."""

    picture: Picture
    entropy: float
    neighbours: list[Beside]


@dataclass(frozen=True)
class Group:
    """Anchors of similar entropy."""

    name: str
    anchors: list[Anchor]


def anchors_with_neighbours(
    found: Neighbourhoods, certainty: Certainty, features: Tensor, pictures: Pictures
) -> list[Group]:
    """Anchors of lowest, middle and highest entropy, each with its neighbours, nearest first.

    In round 0, which has no anchors, images of the sample stand in, with the neighbour nearest by their features.
    """
    if len(found.anchor_indexes) > 0:
        ordered, neighbours = found.anchor_indexes, found.neighbours
    else:
        ordered, neighbours = certainty.ordered(), None
    groups = []
    for name, places in _thirds(len(ordered)):
        rows = ordered[places]
        if neighbours is None:
            beside = nearest(features[rows], features, 1, rows, backend="torch")[1]
        else:
            beside = neighbours[places, :NEIGHBOURS]
        shown = zip(rows.tolist(), certainty.of(rows).tolist(), beside.tolist())
        groups.append(Group(name, [_anchor(*each, pictures) for each in shown]))
    return groups


def _anchor(row: int, entropy: float, others: Sequence[int], pictures: Pictures) -> Anchor:
    beside = [Beside(pictures.picture(other), pictures.same_class(row, other)) for other in others]
    return Anchor(pictures.picture(row), entropy, beside)


def _thirds(count: int) -> list[tuple[str, slice]]:
    """Where the lowest, middle and highest of `count` ordered ones stand; none stands in two groups."""
    size = min(GROUP, count // 3)
    if size == 0:
        return [("All", slice(0, count))]
    middle = (count - size) // 2
    return [
        ("Lowest entropy", slice(0, size)),
        ("Middle entropy", slice(middle, middle + size)),
        ("Highest entropy", slice(count - size, count)),
    ]


@dataclass(frozen=True)
class Certain:
    """An image and its entropy."""

    picture: Picture
    entropy: float


def ends(certainty: Certainty, pictures: Pictures) -> tuple[list[Certain], list[Certain]]:
    """The most certain images, surest first, and the least certain, least sure first; no image is in both."""
    order = torch.sort(certainty.entropy, stable=True).indices
    size = min(ENDS, len(order) // 2)
    most, least = order[:size], order[len(order) - size :].flip(0)
    return tuple(
        [Certain(pictures.picture(certainty.rows[place].item()), certainty.entropy[place].item()) for place in places]
        for places in (most, least)
    )


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
