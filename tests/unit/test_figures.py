"""Thumbnails, the grids of anchors with their neighbours, and the files of the projector."""

import numpy as np
import torch

from datasets.image_set import ImageSet
from lib.figures import thumbnails as figures
from lib.figures.thumbnails import NEUTRAL, OTHER, SAME, anchor_grids, thumbnails
from lib.logger.tensorboard import SPRITE_SIDE, Projector
from lib.method.neighbourhoods import Neighbourhoods


def colours(count):
    """Images of one colour each, which is 10 times their number in red."""
    pixels = np.zeros((count, 12, 10, 3), np.uint8)
    pixels[..., 0] = 10 * np.arange(count)[:, None, None]
    return ImageSet(pixels)


def test_thumbnails_are_the_images_asked_for():
    squares = thumbnails(colours(6), [4, 0, 4], 20)
    assert squares.shape == (3, 20, 20, 3)
    assert squares[:, 10, 10, 0].tolist() == [40, 0, 40]


def test_grids_show_the_right_anchors_in_the_right_frames(monkeypatch):
    images, labels = colours(20), torch.tensor([0, 1] * 9 + [-1, 0])
    anchors = torch.arange(12)
    neighbours = torch.stack([(anchors + 2) % 20, (anchors + 1) % 20], dim=1)
    neighbours[0, 0] = 18
    found = Neighbourhoods.of(anchors, neighbours, torch.linspace(0, 3, 20), None)
    drawn = []
    monkeypatch.setattr(figures, "_draw", lambda squares, frames, caption: drawn.append((squares, frames, caption)))
    grids = anchor_grids(found, images, labels, 6)
    assert [grid.part for grid in grids] == ["lowest", "middle", "highest"]
    shown = [squares[:, :, 30, 30, 0] // 10 for squares, _, _ in drawn]
    assert [part.tolist() for part in shown] == [
        [[0, 18, 1], [1, 3, 2]], [[5, 7, 6], [6, 8, 7]], [[10, 12, 11], [11, 13, 12]],
    ]  # fmt: skip
    assert drawn[0][1] == [[NEUTRAL, NEUTRAL, OTHER], [NEUTRAL, SAME, OTHER]]
    assert drawn[0][2].startswith("entropy 0.000 to 0.158")
    anchor_grids(found, images, None, 6)
    assert all(colour == NEUTRAL for _, frames, _ in drawn[3:] for row in frames for colour in row)
    assert anchor_grids(Neighbourhoods.none(20, 1, torch.device("cpu")), images, None, 6) == []


def test_a_grid_has_a_frame_for_each_image():
    found = Neighbourhoods.of(torch.arange(3), torch.tensor([[1], [2], [0]]), torch.linspace(0, 3, 20), None)
    picture = anchor_grids(found, colours(20), torch.tensor([0, 0, 1] + [0] * 17), 3)[0].picture
    assert picture.dtype == np.uint8
    assert (picture == SAME).all(axis=2).sum() > 4 * figures.SIDE
    assert not (picture == OTHER).all(axis=2).any()


def test_a_projector_takes_any_file_name(tmp_path):
    projector = Projector(tmp_path, np.zeros((3, SPRITE_SIDE, SPRITE_SIDE, 3), np.uint8))
    projector.add("after-round-0", np.eye(3), {"image": ["a\tb", "c\nd", 'e"f'], "cluster": ["0", "1", "2"]})
    lines = (tmp_path / "projector" / "after-round-0-about.tsv").read_text().splitlines()
    assert lines == ["image\tcluster", "a b\t0", "c d\t1", 'e"f\t2']
    projector.add("after-round-0", np.zeros((3, 3)), {"image": ["x", "y", "z"]})
    assert (tmp_path / "projector" / "after-round-0-about.tsv").read_text() == "x\ny\nz\n"
    assert (tmp_path / "projector_config.pbtxt").read_text().count("embeddings {") == 1
