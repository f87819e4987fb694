"""scikit-learn's 8x8 handwritten digits: a small data set that needs no download."""

from pathlib import Path

import numpy as np

from datasets.image_set import ImageSet, Split

_TEST_COUNT = 360  # a fifth of 1,797


def digits(root: Path, download: bool) -> Split:
    """1,437 training and 360 test images, stratified by class; always the same split.

    The images come with scikit-learn, so `root` and `download` are ignored.
    """
    # imported here: the other data sets need no scikit-learn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    grey = np.rint(loaded.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), stored as 0 to 16
    images = ImageSet(
        source=np.repeat(grey[..., None], 3, axis=3),
        labels=loaded.target.astype(np.int64),
        classes=tuple("0123456789"),
    )
    train, test = train_test_split(
        np.arange(len(images)), test_size=_TEST_COUNT, stratify=images.labels, random_state=0
    )
    return Split("digits", images.subset(np.sort(train)), images.subset(np.sort(test)))
