"""The clusters of a round: one clustering for tables, TensorBoard, the report, --export and --embed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from lib.clustering.kmeans import spherical_kmeans
from lib.clustering.number import choose_number
from lib.errors import UserError
from lib.search.exact import LARGEST_SAMPLE, nearest, sample_rows

AUTO = "auto"
FEWEST = 20
"""The fewest images of which a round finds clusters; with fewer their number is meaningless."""
ROWS_PER_CLUSTER = 50
"""k-means runs on an even sample of `LARGEST_SAMPLE` images, or of so many for each cluster if that is more."""
COUNTED = 2_000
"""Size of the even sample on which the number of clusters is found: with 5,000 it takes 30 s on a busy core."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """K clusters by their centres.

    Attributes:
        centres: (K, D) float32, unit rows on the CPU, those of the largest cluster first.
        asked: the value of --num-clusters: a number, or `auto`.
        explanation: how K was chosen, in words.
    """

    centres: Tensor
    asked: str
    explanation: str

    def assign(self, features: Tensor) -> Tensor:
        """(N,) int64, the cluster of each feature (N, D): that of the centre with the highest cosine."""
        _, indices = nearest(features.cpu(), self.centres, 1)
        return indices[:, 0]

    def sizes(self, features: Tensor) -> list[int]:
        """How many of the features (N, D) are in each cluster, without empty ones."""
        counts = torch.bincount(self.assign(features), minlength=len(self.centres))
        return counts[counts > 0].tolist()

    def described(self, features: Tensor) -> str:
        """The number of clusters, their sizes and how the number was chosen, as text for the log."""
        sizes = self.sizes(features)
        return f"{len(self.centres)}, of {min(sizes)} to {max(sizes)} training images; {self.explanation}"

    def state(self) -> dict[str, Any]:
        """The clusters as plain data for a checkpoint."""
        return {"centres": self.centres, "asked": self.asked, "explanation": self.explanation}


def check_number(number: str, images: int) -> None:
    """Check that so many clusters can be found among `images` images.

    Raises:
        UserError: there are more clusters than images.
    """
    if number != AUTO and int(number) > images:
        raise UserError(f"--num-clusters {number}: there are only {images} training images; lower it, or use auto")


def round_clusters(sample: Tensor, images: int, number: str, seed: int) -> Optional[Clusters]:
    """The clusters of a round that has ended; None where there are too few images to tell. Takes seconds.

    Args:
        sample: (S, D) unit rows on the CPU, an even sample of the memory bank.
        images: N, the rows of the bank.
        number: as --num-clusters.
        seed: of all random draws.
    """
    needed = FEWEST if number == AUTO else min(images, ROWS_PER_CLUSTER * int(number))
    if len(sample) < needed or (number != AUTO and int(number) > len(sample)):
        return None
    return find_clusters(sample, number, seed)


def find_clusters(features: Tensor, number: str, seed: int) -> Clusters:
    """Clusters of the training images: a function of their features, the number, the seed and the number of threads.

    Args:
        features: (N, D) float32 unit rows on the CPU.
        number: how many, or `auto` to find out how many.
        seed: of all random draws.

    Raises:
        UserError: there are more clusters than images.
    """
    check_number(number, len(features))
    if number != AUTO:
        count, explanation = int(number), "as many as --num-clusters asks for"
    elif len(features) <= 2:
        count, explanation = 1, f"{len(features)} images are too few to tell more apart"
    else:
        found = choose_number(features[sample_rows(len(features), COUNTED)], seed)
        count, explanation = found.clusters, f"found by their {found.criterion_name}: {found.explanation}"
    rows = sample_rows(len(features), max(LARGEST_SAMPLE, ROWS_PER_CLUSTER * count))
    return Clusters(spherical_kmeans(features[rows], count, seed).centres, number, explanation)


def clusters_of(kept: Optional[Mapping[str, Any]], features: Tensor, number: str, seed: int) -> Clusters:
    """The clusters that a checkpoint keeps of the round it ends; those of `find_clusters` where it keeps none, or
    --num-clusters asks for another number.

    Args:
        kept: `clusters` of the checkpoint whose memory bank `features` is; None or empty if it keeps none.
        features, number, seed: as of `find_clusters`.
    """
    if kept and kept["asked"] == number:
        return Clusters(kept["centres"], kept["asked"], kept["explanation"])
    return find_clusters(features, number, seed)
