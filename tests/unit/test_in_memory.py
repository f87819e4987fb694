"""Small images decoded into memory, and their cache."""

import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.files import in_memory
from datasets.files.in_memory import CACHE, decode_small, shrink
from datasets.image_set import ImageSet
from lib.errors import UserError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "train" / label / f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(path)
            paths.append(str(path))
    return ImageSet(tuple(paths), np.array([0, 0, 0, 1, 1, 1]), ("a", "b"))


def cached(images):
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(images.source[0]))), CACHE)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def test_the_array_holds_what_the_files_hold(files):
    array = decode_small(files)
    assert array.pixels.shape == (6, 6, 9, 3)
    for row in range(6):
        np.testing.assert_array_equal(array.pixels[row], np.asarray(files.read(row)))
    assert array.labels.tolist() == files.labels.tolist()
    assert array.classes == files.classes


def test_the_second_load_decodes_nothing(files, monkeypatch):
    first = decode_small(files).pixels
    assert len(cached(files)) == 1
    monkeypatch.setattr(ImageSet, "read", lambda self, row: pytest.fail("decoded again"))
    np.testing.assert_array_equal(decode_small(files).pixels, first)


def test_a_changed_image_is_not_taken_from_the_cache_even_with_its_old_time(files):
    decode_small(files)
    times = os.stat(files.source[2])
    Image.fromarray(np.zeros((6, 9, 3), dtype=np.uint8)).save(files.source[2])
    os.utime(files.source[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert decode_small(files).pixels[2].max() == 0


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_cache_is_rebuilt(files, damage):
    first = decode_small(files).pixels
    (file,) = cached(files)
    with open(file, "wb") as opened:
        opened.write(damage)
    np.testing.assert_array_equal(decode_small(files).pixels, first)
    assert os.path.getsize(file) > len(first.tobytes())


def test_a_foreign_cache_is_not_executed(files, tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    first = decode_small(files).pixels
    (file,) = cached(files)
    np.save(file, np.array([Planted()], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(decode_small(files).pixels, first)
    assert not (tmp_path / "trap").exists()


def test_fingerprints_depend_on_the_images_not_on_their_folder(files, tmp_path):
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "train", moved / "train")
    same = ImageSet(tuple(p.replace(str(tmp_path), str(moved)) for p in files.source), files.labels, files.classes)
    assert same.fingerprint() == files.fingerprint()
    assert files.subset([0, 1, 2, 3]).fingerprint() != files.subset([0, 1, 2, 4]).fingerprint()
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    other = pixels.copy()
    other[1, 2, 3, 0] = 1
    assert ImageSet(pixels).fingerprint() == ImageSet(pixels.copy()).fingerprint() != ImageSet(other).fingerprint()


def test_large_images_and_images_of_mixed_sizes_stay_files(files, tmp_path):
    Image.new("RGB", (6, 9)).save(files.source[5])
    assert decode_small(files) is None
    Image.new("RGB", (65, 9)).save(files.source[0])
    assert decode_small(files) is None
    assert cached(files) == []


def test_training_and_test_images_of_one_folder_have_caches_of_their_own(files, monkeypatch):
    """As of CUB-200, whose list tells the test images."""
    train, test = ImageSet(files.source[::2]), ImageSet(files.source[1::2])
    first = [shrink(images, 4, 0, kind).pixels for images, kind in ((train, "training"), (test, "test"))]
    monkeypatch.setattr(in_memory, "read_rgb", lambda *given, **options: pytest.fail("decoded again"))
    again = [shrink(images, 4, 0, kind).pixels for images, kind in ((train, "training"), (test, "test"))]
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)


def test_each_process_of_a_machine_holds_the_scaled_images(files, monkeypatch):
    monkeypatch.setattr(in_memory, "physical_memory", lambda: 2 * 6 * 48)  # half of it holds 6 images of 4 x 4 pixels
    shrink(files, 4, 0)
    for name, value in (("RANK", 0), ("WORLD_SIZE", 4), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="6 images in each of 2 processes would take"):
        shrink(files, 4, 0)


def test_a_bad_image_is_named(files):
    with open(files.source[4], "wb") as file:
        file.write(b"")
    with pytest.raises(UserError, match=r"1\.png"):
        decode_small(files)


def test_a_folder_of_small_images_is_augmented_on_the_device(files, tmp_path):
    from dataclasses import replace

    import datasets
    from datasets.pipeline import Pipeline
    from lib.config import Options

    split = datasets.load("imagefolder", str(tmp_path), False)
    options = replace(Options(), size=8, batch_size=4)
    auto = Pipeline(split, options, torch.device("cpu"))
    workers = Pipeline(split, replace(options, augment_on="workers", workers_num=0), torch.device("cpu"))
    assert (auto.on_device, workers.on_device) == (True, False)
    (one, _), (other, _) = next(auto.train_batches_plain()), next(workers.train_batches_plain())
    assert torch.equal(one, other)


def test_reading_the_cache_takes_the_memory_of_two_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(in_memory.cache, "file_keys", lambda paths: np.arange(1, len(paths) + 1, dtype=np.uint64))
    monkeypatch.setattr(in_memory, "_BLOCK", 16)
    paths = [str(tmp_path / "p" / f"{number}.png") for number in range(600)]
    cached = in_memory._Cache(paths, 64, "training")
    pixels = np.random.default_rng(0).integers(0, 256, (600, 64, 64, 3), dtype=np.uint8)
    cached.write(pixels, np.ones(600, dtype=bool))
    tracemalloc.start()
    found, done = cached.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, pixels)
    assert done.all()
    assert peak < 2.3 * pixels.nbytes
