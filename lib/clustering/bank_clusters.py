"""What clusters come out: how many, and how large, from the features alone."""

from typing import Optional

from lib.clustering.kmeans import Clustering, spherical_kmeans
from lib.clustering.number import choose_number
from lib.evaluation.bank_statistics import Survey, sample_rows

FEWEST = 20
"""Images below which a number of clusters means nothing."""

COUNTED = 2_000
"""Images by which the number of clusters is found, an even sample: of 5,000 it takes 30 s on a busy core."""

_RESTARTS = 3  # fewer than for a result that is kept: this one is looked at


def clusters_of(found: Survey, seed: int) -> Optional[Clustering]:
    """Clusters of the images that a survey looked at; None for too few of them.

    The number of clusters is found from the features too. Takes seconds; to be called in one process.
    """
    if len(found.rows) < FEWEST:
        return None
    features = found.features.cpu()
    counted = features[sample_rows(len(features), COUNTED)]
    return spherical_kmeans(features, choose_number(counted, seed).clusters, seed, restarts=_RESTARTS)
