"""What a data set consists of."""

from dataclasses import dataclass
from typing import Optional

from datasets.image_set import ImageSet


@dataclass(frozen=True)
class Split:
    """A data set, divided into training and test images.

    Attributes:
        name: as `--dataset` names it.
        train: the images to learn from.
        test: the images to be judged by; None for a folder without any.
        means, stds: per channel, red, green, blue, for images in [0, 1].
        notes: what was found that its owner may want to know, a line each.
    """

    name: str
    train: ImageSet
    test: Optional[ImageSet]
    means: tuple[float, float, float]
    stds: tuple[float, float, float]
    notes: tuple[str, ...] = ()
