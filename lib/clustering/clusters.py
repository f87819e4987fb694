"""The clusters of a checkpoint: found in its memory bank, the same whatever they are used for."""

import logging
from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from lib.clustering.kmeans import Clustering, spherical_kmeans
from lib.clustering.number import choose_number
from lib.errors import UserError
from lib.evaluation.bank_statistics import Survey, sample_rows
from lib.logger.console import LOGGER
from lib.search.exact import nearest

log = logging.getLogger(LOGGER)

FEWEST = 2
FEWEST_COUNTED = 20
"""Images below which a number of clusters means nothing."""

COUNTED = 2_000
"""Images by which the number of clusters is found, an even sample: of 5,000 it takes 30 s on a busy core."""

_RESTARTS = 3  # fewer than for a result that is kept: this one is looked at


@dataclass(frozen=True, eq=False)
class Clusters:
    """K clusters by their centres.

    Attributes:
        centres: (K, D) float32, unit rows on the CPU, those of the largest cluster first.
    """

    centres: Tensor

    def of(self, features: Tensor) -> Tensor:
        """(N,) int64, the cluster of each feature (N, D): that of the centre with the highest cosine."""
        _, indices = nearest(features.cpu(), self.centres, 1)
        return indices[:, 0]


def check_number(number: str, images: int) -> None:
    """Whether so many clusters can be found among `images` images.

    Raises:
        UserError: there are more clusters than images.
    """
    if number != "auto" and int(number) > images:
        raise UserError(f"--num-clusters {number}: there are only {images} training images; lower it, or use auto")


def find_clusters(memory: Tensor, number: str, seed: int) -> Clusters:
    """Clusters of the training images; a function of their features, the number and the seed.

    Args:
        memory: (N, D) float32 unit rows on the CPU.
        number: how many, or `auto` to find out how many.
        seed: of k-means.

    Raises:
        UserError: there are more clusters than images.
    """
    check_number(number, len(memory))
    if number == "auto" and len(memory) <= FEWEST:
        count = 1
        log.info("clusters   1: %d images are too few to tell more apart", len(memory))
    elif number == "auto":
        found = choose_number(memory, seed)
        count = found.clusters
        log.info("clusters   %d found by their %s (%s)", count, found.criterion_name, found.explanation)
    else:
        count = int(number)
    clustering = spherical_kmeans(memory, count, seed)
    sizes = clustering.sizes.tolist()
    log.info("clusters   %d, of %d to %d training images (--num-clusters)", count, min(sizes), max(sizes))
    return Clusters(clustering.centres)


def clusters_of(found: Survey, seed: int) -> Optional[Clustering]:
    """Clusters of the images that a survey looked at; None for too few of them.

    The number of clusters is found from the features too. Takes seconds; to be called in one process.
    """
    if len(found.rows) < FEWEST_COUNTED:
        return None
    features = found.features.cpu()
    counted = features[sample_rows(len(features), COUNTED)]
    return spherical_kmeans(features, choose_number(counted, seed).clusters, seed, restarts=_RESTARTS)
