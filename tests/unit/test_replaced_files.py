"""Files replaced under the same names: caches and sessions notice."""

import fcntl
import os

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.files import bad_images
from datasets.files.bad_images import readable_images
from datasets.files.in_memory import decode_small, shrink
from datasets.image_set import ImageSet
from lib.checkpoint.io import check_layout


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def bitmaps(folder, count, first=0, side=70):
    """BMP files of one colour each, all of the same number of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (side, side), (first + number, 0, 0)).save(folder / f"{number:03d}.bmp")
    return ImageSet(sorted(map(str, folder.iterdir())))


def times(path):
    status = os.stat(path)
    return status.st_atime_ns, status.st_mtime_ns


def overwrite(path, content):
    with open(path, "r+b") as file:
        file.write(content)


def by_rename(path, content):
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.replace(f"{path}.new", path)


def unlinked(path, content):
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("replace", [overwrite, by_rename, unlinked])
def test_a_replaced_file_of_the_same_size_and_time_is_read_again(tmp_path, replace):
    images = bitmaps(tmp_path / "p", 3)
    first = shrink(images, 4, 0).pixels
    assert first[1].max() == 1
    path, kept = images.source[1], times(images.source[1])
    with open(path, "rb") as file:
        other = file.read().replace(b"\0\0\1", b"\0\0\77")
    replace(path, other)
    os.utime(path, ns=kept)
    assert times(path) == kept
    assert os.path.getsize(path) == len(other)
    assert shrink(images, 4, 0).pixels[1].max() == 63
    assert decode_small(images) is None  # too large for that cache, which reads every byte


def test_good_files_replaced_by_bad_ones_of_the_same_size_and_time_are_noticed(tmp_path, monkeypatch):
    images = bitmaps(tmp_path / "p", 3)
    assert readable_images(images, "training", 0, False)[1] == ()
    monkeypatch.setattr(bad_images, "read_rgb", lambda path: pytest.fail("nothing has changed"))
    assert readable_images(images, "training", 0, False)[1] == ()
    monkeypatch.undo()
    path, kept = images.source[2], times(images.source[2])
    overwrite(path, b"x" * os.path.getsize(path))
    os.utime(path, ns=kept)
    assert readable_images(images, "training", 0, False)[1] == (path,)


def test_a_process_suspended_while_it_writes_the_record_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.files.cache.PATIENCE", 0.1)
    images = bitmaps(tmp_path / "p", 3)
    (tmp_path / ".and-cache").mkdir()
    other = os.open(tmp_path / ".and-cache", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # flock excludes another descriptor even of the same process
    assert readable_images(images, "training", 0, False)[1] == ()
    os.close(other)
    assert len(np.load(tmp_path / ".and-cache" / "checked-p.npy")) == 3


@pytest.mark.parametrize("side", [8, 70])
def test_another_decoder_version_ignores_older_caches(tmp_path, monkeypatch, side):
    images = bitmaps(tmp_path / "p", 3, side=side)
    make = decode_small if side == 8 else lambda given: shrink(given, 4, 0)
    first = make(images).pixels
    cache = next((tmp_path / ".and-cache").iterdir())
    monkeypatch.setattr("datasets.files.cache.decoder", lambda: "2/pillow_heif 99")
    read = []

    def black(*what, **how):
        read.append(what)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(ImageSet, "read", black)
    monkeypatch.setattr("datasets.files.in_memory.read_rgb", black)
    assert make(images).pixels.max() == 0 != first.max()
    assert len(read) == 3
    assert cache.exists()


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 600])
def test_content_checksums_are_an_even_sample(tmp_path, count):
    images = bitmaps(tmp_path / "p", count, side=1)
    contents = images.contents()
    assert len(contents) == min(count, 256)
    assert all(0 < each < 2**31 for each in contents)
    assert images.replaced(contents).paths == ()
    assert images.replaced(contents).compared == len(contents)


def test_content_checksums_cover_the_middle_of_a_file(tmp_path):
    """A change in the middle of a file is noticed, where beginning and end stay the same."""
    images = bitmaps(tmp_path / "p", 2, side=200)
    contents = images.contents()
    size = os.path.getsize(images.source[0])
    with open(images.source[0], "r+b") as file:
        file.seek(size // 2)
        file.write(b"\7")
    replaced = images.replaced(contents)
    assert (replaced.paths, replaced.are_other_pictures) == ((images.source[0],), False)
    assert str(replaced) == f"1 of 2 files compared ({images.source[0]})"


def test_other_and_edited_pictures_are_distinguished(tmp_path):
    images = bitmaps(tmp_path / "p", 10)
    contents = images.contents()
    bitmaps(tmp_path / "p", 4, first=100)
    assert not images.replaced(contents).are_other_pictures
    bitmaps(tmp_path / "p", 6, first=100)
    assert images.replaced(contents).are_other_pictures
    assert len(images.replaced(contents).paths) == 6
    assert not images.replaced(None).are_other_pictures  # of a session made before
    assert not images.replaced([]).are_other_pictures
    pixels = ImageSet(np.zeros((3, 2, 2, 3), np.uint8))
    assert pixels.contents() == []
    assert not pixels.replaced([1, 2, 3]).are_other_pictures


def test_a_file_that_cannot_be_read_is_no_difference(tmp_path):
    images = bitmaps(tmp_path / "p", 3)
    contents = images.contents()
    os.unlink(images.source[0])
    assert images.contents() == [0, *contents[1:]]
    assert images.replaced(contents).paths == ()


@pytest.mark.parametrize("contents", ["abc", [1.5], {"a": 1}, [None], 7])
def test_contents_of_a_checkpoint_are_whole_numbers(contents):
    state = {name: {} for name in ("net", "optimizer", "ANs_discovery", "options")}
    state.update(npc={"memory": torch.zeros(2, 2)}, epoch=0, round=0, dataset={"contents": contents})
    with pytest.raises(ValueError, match="its contents are not whole numbers"):
        check_layout(state)
    check_layout({**state, "dataset": {"contents": [1, 2]}})
    check_layout({**state, "dataset": {}})
