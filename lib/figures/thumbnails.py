"""Thumbnails of training images, and grids of anchors with their neighbours."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from datasets.image_set import ImageSet
from lib.method.neighbourhoods import Neighbourhoods

PARTS = ("lowest", "middle", "highest")
"""The anchors shown, by entropy."""

SIDE, BORDER, GAP = 68, 5, 6  # pixels
NEIGHBOURS_SHOWN = 4
"""Neighbours shown of an anchor; it may have more."""
_WIDEST = 5  # images beside one another; a card of TensorBoard is some 350 pixels wide

NEUTRAL, SAME, OTHER = (150, 150, 150), (0, 140, 60), (205, 30, 40)
_GROUND, _INK = (255, 255, 255), (40, 40, 40)
_CAPTION = 14  # pixels of height
_THREADS = 4  # decoding releases the interpreter lock


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
        # small images are enlarged without smoothing: their pixels are what the network gets
        how = Image.Resampling.NEAREST if max(image.size) <= side // 2 else Image.Resampling.BILINEAR
        return np.asarray(ImageOps.fit(image, (side, side), how))

    squares = np.empty((len(wanted), side, side, 3), dtype=np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, each in enumerate(pool.map(square, wanted)):
            squares[number] = each
    return squares[[place[row] for row in rows]]


@dataclass(frozen=True)
class AnchorGrid:
    """A picture, (H, W, 3) uint8, of anchors and neighbours of one of `PARTS`."""

    part: str
    picture: np.ndarray


def anchor_grids(found: Neighbourhoods, images: ImageSet, labels: Optional[Tensor], count: int) -> list[AnchorGrid]:
    """Anchors of lowest, middle and highest entropy, each followed by its nearest neighbours.

    A neighbour has a green frame where it has the anchor's label, a red one with a bar across its corner where it has
    another, and a grey one where that is not known.

    Args:
        found: the neighbourhoods of a round.
        images: the training images.
        labels: (N,) int64, below 0 where unknown, or None.
        count: anchors in total; each picture has a third of them.
    """
    anchors = found.anchor_indexes.cpu()
    each = min(-(-count // len(PARTS)), len(anchors))
    if each == 0:
        return []
    middle = (len(anchors) - each) // 2
    starts = (0, middle, len(anchors) - each)
    places = torch.cat([torch.arange(start, start + each) for start in starts])
    rows = torch.cat([anchors[places, None], found.neighbours.cpu()[places, :NEIGHBOURS_SHOWN]], dim=1)  # (M, 1 + k)
    squares = thumbnails(images, rows.flatten().tolist(), SIDE).reshape(*rows.shape, SIDE, SIDE, 3)
    entropy = found.entropy.cpu()[anchors[places]]
    grids = []
    for number, part in enumerate(PARTS):
        here = slice(number * each, (number + 1) * each)
        frames = [_frames(row, labels) for row in rows[here].tolist()]
        low, high = entropy[here].min().item(), entropy[here].max().item()
        caption = f"entropy {low:.3f} to {high:.3f}; each anchor, then its nearest"
        grids.append(AnchorGrid(part, _draw(squares[here], frames, caption)))
    return grids


def _frames(row: Sequence[int], labels: Optional[Tensor]) -> list[tuple[int, int, int]]:
    """The colours of an anchor's frame and of its neighbours'."""
    frames = [NEUTRAL]
    for neighbour in row[1:]:
        if labels is None or labels[row[0]] < 0 or labels[neighbour] < 0:
            frames.append(NEUTRAL)
        else:
            frames.append(SAME if labels[row[0]] == labels[neighbour] else OTHER)
    return frames


def _draw(squares: np.ndarray, frames: Sequence[Sequence[tuple[int, int, int]]], caption: str) -> np.ndarray:
    """Anchors with their neighbours (M, 1 + k, SIDE, SIDE, 3), as many of them in a line as there is room for."""
    count, width = squares.shape[:2]
    cell = SIDE + 2 * BORDER
    group = width * cell + 2 * GAP
    in_line = min(count, max(1, _WIDEST // width))
    lines = -(-count // in_line)
    picture = Image.new("RGB", (in_line * group + 2 * GAP, lines * (cell + 2 * GAP) + 2 * GAP + _CAPTION), _GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((2 * GAP, 3), caption, fill=_INK)
    for number in range(count):
        top = 2 * GAP + _CAPTION + number // in_line * (cell + 2 * GAP)
        for column in range(width):
            left = 2 * GAP + number % in_line * group + column * cell
            frame = frames[number][column]
            draw.rectangle((left, top, left + cell - 2, top + cell - 1), fill=frame)
            picture.paste(Image.fromarray(squares[number, column]), (left + BORDER - 1, top + BORDER))
            if frame == OTHER:  # not by the colour alone
                draw.line((left, top + 16, left + 16, top), fill=OTHER, width=4)
    return np.asarray(picture)
