"""Small squares of training images, for people to look at."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from datasets.image_set import ImageSet

_THREADS = 4  # decoding leaves Python free


def thumbnails(images: ImageSet, rows: Sequence[int], side: int) -> np.ndarray:
    """The middle square of each image, scaled: (M, side, side, 3) uint8.

    Args:
        rows: M row numbers; an image that is named twice is read once.

    Raises:
        UserError: a file cannot be read.
    """
    wanted = sorted(set(rows))
    place = {row: number for number, row in enumerate(wanted)}

    def square(row: int) -> np.ndarray:
        image = images.read(row, at_least=2 * side)
        # small images are shown with their pixels as they are, which is what the network gets
        how = Image.NEAREST if max(image.size) <= side // 2 else Image.BILINEAR
        return np.asarray(ImageOps.fit(image, (side, side), how))

    squares = np.empty((len(wanted), side, side, 3), dtype=np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, each in enumerate(pool.map(square, wanted)):
            squares[number] = each
    return squares[[place[row] for row in rows]]
