"""Data sets, decoding, transforms, and DataLoader workers."""

import gzip
import hashlib
import multiprocessing
import os
import pickle
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as TF

import datasets
from datasets.image_set import ImageSet, limit
from datasets.loaders.workers import WorkerLoader
from datasets.transforms import pil as transforms
from lib.config.registry import statistics_of
from lib.errors import UserError
from tests.helpers.cifar import CIFAR10, cifar_pixels, write_cifar

CPU = torch.device("cpu")
RED, WHITE = (255, 0, 0), (255, 255, 255)


def save(path, colour=RED, size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def read(path):
    image = ImageSet((str(path),)).read(0)
    assert image.mode == "RGB"
    return image


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# Reading files


def test_jpeg_png_and_palette_keep_their_colours(tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp", "a.tiff", "a.webp"):
        pixel = read(save(tmp_path / name)).getpixel((1, 1))
        assert np.abs(np.subtract(pixel, RED)).max() <= 2, name
    Image.new("RGB", (4, 4), RED).convert("P").save(tmp_path / "p.png")
    assert read(tmp_path / "p.png").getpixel((0, 0)) == RED
    Image.new("L", (4, 4), 77).save(tmp_path / "l.png")
    assert read(tmp_path / "l.png").getpixel((0, 0)) == (77, 77, 77)
    Image.new("1", (4, 4), 1).save(tmp_path / "1.png")
    assert read(tmp_path / "1.png").getpixel((0, 0)) == WHITE


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    for name in ("rgba", "la", "key", "p"):
        assert read(tmp_path / f"{name}.png").getpixel((0, 0)) == WHITE, name
    assert read(tmp_path / "p.png").getpixel((1, 1)) == RED


def test_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_greys_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert np.asarray(read(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(np.subtract(read(tmp_path / "a.jpg").getpixel((4, 4)), RED)).max() <= 3


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 2), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    shown = read(tmp_path / "a.png")
    assert shown.size == (2, 6)
    assert shown.getpixel((1, 0)) == RED


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path):
    Image.new("RGB", (6, 2), RED).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read(tmp_path / "a.jpg").size == (6, 2)


def test_one_pixel(tmp_path):
    assert read(save(tmp_path / "a.png", size=(1, 1))).getpixel((0, 0)) == RED


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    good = save(tmp_path / "good.jpg", size=(64, 64)).read_bytes()
    bad = {"truncated.jpg": (good[:-200], "truncated"), "zero.png": (b"", "empty"), "text.png": (b"hi", "format")}
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in message(error)
        assert reason in message(error)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp"])
def test_damage_anywhere_in_a_file_raises_nothing_but_user_error(tmp_path, name):
    path = save(tmp_path / name, size=(9, 9))
    good = path.read_bytes()
    refused = 0
    for place in range(min(len(good), 120)):
        for content in (good[:place], good[:place] + b"\xf7" + good[place + 1 :]):
            path.write_bytes(content)
            try:
                read(path)
            except UserError:
                refused += 1
    assert refused > 0


def test_floating_point_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="floating-point"):
        read(tmp_path / "a.tiff")


# Image sets


def numbered(count, side=8):
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ImageSet(pixels, np.arange(count) % 3, ("a", "b", "c"))


def test_images_in_memory():
    images = numbered(5)
    assert len(images) == 5
    assert images.pixels is images.source
    assert images.read(3).getpixel((0, 0)) == (3, 3, 3)
    chosen = images.subset([4, 1])
    assert chosen.pixels[:, 0, 0, 0].tolist() == [4, 1]
    assert chosen.labels.tolist() == [1, 1]
    assert chosen.classes == ("a", "b", "c")


def test_images_in_files(tmp_path):
    paths = tuple(str(save(tmp_path / f"{i}.png", (i, i, i))) for i in range(3))
    images = ImageSet(paths)
    assert images.pixels is None
    assert images.subset([2]).read(0).getpixel((0, 0)) == (2, 2, 2)
    assert images.subset([2]).labels is None


def test_image_set_checks_its_parts():
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="labels"):
        ImageSet(("a", "b"), np.zeros(3, np.int64))


def test_limit_is_fixed_ordered_and_nested():
    images = numbered(50)
    chosen = {count: limit(images, count, 7).pixels[:, 0, 0, 0].tolist() for count in range(51)}
    for count in range(50):
        assert len(chosen[count]) == count
        assert chosen[count] == sorted(chosen[count])
        assert set(chosen[count]) < set(chosen[count + 1])
    assert limit(images, 20, 7).pixels[:, 0, 0, 0].tolist() == chosen[20]
    assert limit(images, 20, 8).pixels[:, 0, 0, 0].tolist() != chosen[20]
    assert len(limit(images, 51, 7)) == 50
    assert limit(images, 5, 0).pixels[:, 0, 0, 0].tolist() == [10, 14, 17, 29, 44]


# The data sets


def test_digits_are_split_evenly_and_reproducibly():
    split = datasets.load("digits", None, False)
    assert (split.name, len(split.train), len(split.test)) == ("digits", 1437, 360)
    assert split.train.pixels.shape == (1437, 8, 8, 3)
    assert split.train.pixels.max() == 255
    share = np.bincount(split.test.labels) / np.bincount(np.concatenate([split.train.labels, split.test.labels]))
    assert np.abs(share - 360 / 1797).max() < 0.006
    fingerprint = hashlib.md5(split.test.pixels.tobytes() + split.train.labels.astype("<i8").tobytes())
    assert fingerprint.hexdigest() == "02f5675e2d61eceee24ddff6dca7bdee"


def test_digits_state_their_own_mean_and_deviation():
    split = datasets.load("digits", None, False)
    shade = split.train.pixels / 255.0
    means, stds = statistics_of("digits")
    assert means == pytest.approx((shade.mean(),) * 3, abs=5e-5)
    assert stds == pytest.approx((shade.std(),) * 3, abs=5e-5)


def test_statistics_are_each_data_sets_own(tmp_path, fake_cifar, fake_svhn):
    cifar10 = datasets.load("cifar10", str(fake_cifar("CIFAR10", tmp_path / "10")), False)
    assert statistics_of(cifar10.name) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    cifar100 = datasets.load("cifar100", str(fake_cifar("CIFAR100", tmp_path / "100")), False)
    assert statistics_of(cifar100.name) == ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023))
    svhn = datasets.load("svhn", str(fake_svhn(tmp_path / "svhn")), False)
    assert statistics_of(svhn.name) == ((0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052))


@pytest.fixture
def fake_cifar(monkeypatch):
    """A maker of small files in CIFAR's format, which torchvision then takes for the originals."""

    def make(kind_name, root):
        kind = getattr(torchvision.datasets, kind_name)
        for name, value in write_cifar(kind, root).items():
            monkeypatch.setattr(kind, name, value)
        return root

    return make


@pytest.fixture
def fake_svhn(monkeypatch):
    """A maker of small files in SVHN's format, which torchvision then takes for the originals."""

    def make(root):
        from scipy.io import savemat

        root.mkdir(parents=True)
        listed = dict(torchvision.datasets.SVHN.split_list)
        for part, count in (("train", 4), ("test", 3)):
            url, name, _ = listed[part]
            pixels = cifar_pixels(count, 10).transpose(2, 3, 1, 0)
            savemat(root / name, {"X": pixels, "y": np.array([[10], [1], [9], [2]])[:count]})
            listed[part] = [url, name, hashlib.md5((root / name).read_bytes()).hexdigest()]
        monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
        return root

    return make


def test_cifar10_files(tmp_path, fake_cifar):
    split = datasets.load("CIFAR10", str(fake_cifar("CIFAR10", tmp_path)), False)
    assert (split.name, len(split.train), len(split.test)) == ("cifar10", 10, 2)
    assert split.train.classes == CIFAR10
    assert split.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert split.train.labels.dtype == np.int64
    assert split.train.pixels.shape == (10, 32, 32, 3)
    assert split.train.pixels.flags["C_CONTIGUOUS"]
    assert split.train.read(7).getpixel((5, 5)) == (7, 100, 200)
    assert split.train.read(7).getpixel((0, 0)) == (0, 0, 0)
    assert split.test.read(1).getpixel((5, 5)) == (51, 100, 200)


def test_the_checksum_of_each_cifar_file_is_computed_once(tmp_path, fake_cifar, monkeypatch):
    root = fake_cifar("CIFAR10", tmp_path)
    computed = []
    of_file = torchvision.datasets.utils.calculate_md5

    def counted(path, *rest):
        computed.append(Path(path).name)
        return of_file(path, *rest)

    monkeypatch.setattr(torchvision.datasets.utils, "calculate_md5", counted)
    datasets.load("cifar10", str(root), False)
    batches = [name for name in computed if name != "batches.meta"]
    assert sorted(batches) == [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def test_cifar100_has_fine_labels(tmp_path, fake_cifar):
    split = datasets.load("cifar100", str(fake_cifar("CIFAR100", tmp_path)), False)
    assert len(split.train.classes) == 100
    assert split.train.labels.tolist() == [0, 9]


def test_svhn_label_10_is_digit_zero(tmp_path, fake_svhn):
    split = datasets.load("svhn", str(fake_svhn(tmp_path / "s")), False)
    assert split.train.labels.tolist() == [0, 1, 9, 2]
    assert split.test.labels.tolist() == [0, 1, 9]
    assert split.train.classes == tuple("0123456789")
    assert split.train.read(2).getpixel((5, 5)) == (12, 100, 200)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist"])
def test_missing_data_set_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch, name, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        datasets.load(name, None, False)
    for part in (f"--dataset {name}", "--download", f"ln -s /path/to/{name} data/{name}"):
        assert part in message(error)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "data").exists()


def test_one_missing_file_is_named(tmp_path, fake_cifar):
    root = fake_cifar("CIFAR10", tmp_path)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="no file cifar-10-batches-py.data_batch_3"):
        datasets.load("cifar10", str(root), False)


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_is_not_the_original_is_not_loaded(tmp_path, fake_cifar, file):
    root = fake_cifar("CIFAR10", tmp_path / "data")
    path = root / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(UserError) as error:
        datasets.load("cifar10", str(root), False)
    assert str(path) in message(error)
    assert "checksum" in message(error)
    assert not (tmp_path / "trace").exists()


def test_a_damaged_svhn_file_is_named(tmp_path, fake_svhn):
    root = fake_svhn(tmp_path / "s")
    (root / "test_32x32.mat").write_bytes(b"")
    with pytest.raises(UserError) as error:
        datasets.load("svhn", str(root), False)
    assert "test_32x32.mat" in message(error)
    assert "train_32x32.mat" not in message(error)


def test_download_is_torchvisions_and_logs_to_standard_error(tmp_path, fake_cifar, monkeypatch, capsys):
    def fetch(self):
        print("Downloading")
        if not (tmp_path / "d" / self.base_folder).exists():
            (tmp_path / "elsewhere").rename(tmp_path / "d")

    fake_cifar("CIFAR10", tmp_path / "elsewhere")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fetch)
    assert len(datasets.load("cifar10", str(tmp_path / "d"), True).train) == 10
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading" in captured.err


def test_failed_download_is_a_user_error(tmp_path, monkeypatch):
    def fetch(self):
        raise OSError("<urlopen error no route\nto host>")

    monkeypatch.setattr(torchvision.datasets.SVHN, "download", fetch)
    with pytest.raises(UserError) as error:
        datasets.load("svhn", str(tmp_path), True)
    assert "no route to host" in message(error)


def test_cifar10_in_folders(tmp_path):
    for place, name in enumerate(CIFAR10):
        save(tmp_path / "train" / name / "1.png", (place, 0, 0))
        save(tmp_path / "test" / name / "1.JPEG")
    split = datasets.load("cifar10", str(tmp_path), False)
    assert split.train.classes == CIFAR10
    assert [split.train.read(i).getpixel((0, 0))[0] for i in range(10)] == split.train.labels.tolist()
    assert statistics_of(split.name)[0] == (0.4914, 0.4822, 0.4465)
    (tmp_path / "train" / "truck").rename(tmp_path / "train" / "lorry")
    (tmp_path / "test" / "truck").rename(tmp_path / "test" / "lorry")
    with pytest.raises(UserError, match=r"lorry.*not the ten of CIFAR-10"):
        datasets.load("cifar10", str(tmp_path), False)


def test_cifar100_folders_must_be_100(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "train" / name / "1.png")
        save(tmp_path / "test" / name / "1.png")
    with pytest.raises(UserError, match="2 class folders, not 100"):
        datasets.load("cifar100", str(tmp_path), False)


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write_idx(folder, compressed=False):
    """Three training and two test images of 4 x 5 pixels in MNIST's format; pixel p of image i is 20 i + p."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, count in zip(IDX_FILES, (3, 3, 2, 2)):
        if "images" in file:
            content = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 4, 5) + bytes(range(20 * count))
        else:
            content = struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes((9, 0, 4)[:count])
        name, content = (f"{file}.gz", gzip.compress(content)) if compressed else (file, content)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "below", "compressed", "classes"),
    [
        ("mnist", "", False, "0 4 9"),
        ("mnist", "MNIST/raw", False, "0 4 9"),
        ("fashion-mnist", "", True, "T-shirt/top Coat Ankle boot"),
        ("Fashion-MNIST", "FashionMNIST/raw", True, "T-shirt/top Coat Ankle boot"),
    ],
)
def test_grey_images_in_mnists_format(tmp_path, name, below, compressed, classes):
    write_idx(tmp_path / below, compressed)
    split = datasets.load(name, str(tmp_path), False)
    assert (split.train.pixels.shape, split.test.pixels.shape) == ((3, 4, 5, 3), (2, 4, 5, 3))
    assert split.train.pixels[2, 1, 3].tolist() == [48, 48, 48]
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([9, 0, 4], [9, 0])
    assert " ".join(split.train.classes[label] for label in (0, 4, 9)) == classes
    shade = {"mnist": (0.1307, 0.3081)}.get(name, (0.2860, 0.3530))  # of the 60,000 training images
    assert statistics_of(split.name) == tuple((value,) * 3 for value in shade)
    assert split.notes == ()


@pytest.mark.parametrize("damage", ["cut", "short", "no gzip", "other kind", "labels lack", "a label too many"])
def test_a_damaged_file_in_mnists_format_is_named(tmp_path, damage):
    write_idx(tmp_path, compressed=True)
    path = tmp_path / (
        "t10k-images-idx3-ubyte.gz" if damage in ("cut", "short", "no gzip") else "train-labels-idx1-ubyte.gz"
    )
    content = {
        "cut": path.read_bytes()[:-9],
        "short": gzip.compress(bytes((0, 0, 8, 3, 0))),
        "no gzip": b"<html>",
        "other kind": (tmp_path / "train-images-idx3-ubyte.gz").read_bytes(),
        "labels lack": (tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes(),
        "a label too many": gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes((9, 0, 10))),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        datasets.load("fashion-mnist", str(tmp_path), False)
    assert str(path) in message(error)


def test_fashion_mnist_falls_back_to_the_debian_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = write_idx(tmp_path / "usr", compressed=True)
    monkeypatch.setitem(datasets.PACKAGED, "fashion-mnist", packaged)
    split = datasets.load("fashion-mnist", None, True)  # nothing is downloaded
    assert len(split.train) == 3
    assert str(packaged) in split.notes[0]
    with pytest.raises(UserError, match="neither train-images-idx3-ubyte nor"):
        datasets.load("fashion-mnist", str(tmp_path / "mine"), False)
    write_idx(tmp_path / "data" / "fashion-mnist")
    assert datasets.load("fashion-mnist", None, False).notes == ()


def test_mnist_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: write_idx(Path(self.raw_folder)))
    assert len(datasets.load("mnist", str(tmp_path), True).train) == 3


def test_an_unknown_data_set_error_lists_the_data_sets():
    with pytest.raises(UserError, match=r"--dataset stl10: .*cifar10, cifar100, svhn, mnist, fashion-mnist"):
        datasets.load("stl10", None, False)


# Folders of images


def load_folder(root):
    return datasets.load("imagefolder", str(root), False)


def test_folders_at_any_depth_sorted_without_hidden_files(tmp_path):
    for name in ("cat/deep/er/b.PNG", "cat/a.jpg", "bee/z.jpeg", "cat/.hidden.png", ".trash/x.png"):
        save(tmp_path / "train" / name, format="PNG")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "nothing").mkdir()
    save(tmp_path / "test" / "cat" / "c.png")
    split = load_folder(tmp_path)
    names = [os.path.relpath(path, tmp_path / "train") for path in split.train.source]
    assert names == ["bee/z.jpeg", "cat/a.jpg", "cat/deep/er/b.PNG"]
    assert split.train.labels.tolist() == [0, 1, 1]
    assert split.train.classes == split.test.classes == ("bee", "cat")
    assert split.test.labels.tolist() == [1]
    assert statistics_of(split.name)[0] == (0.485, 0.456, 0.406)
    assert split.train.pixels is None


def test_val_replaces_test_and_both_are_optional(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    assert load_folder(tmp_path).test is None
    save(tmp_path / "val" / "a" / "2.png")
    assert load_folder(tmp_path).test.source[0].endswith("2.png")
    save(tmp_path / "test" / "a" / "3.png")
    assert load_folder(tmp_path).test.source[0].endswith("3.png")


def test_images_without_classes_have_no_labels(tmp_path):
    save(tmp_path / "train" / "b.png")
    save(tmp_path / "train" / "a.png")
    train = load_folder(tmp_path).train
    assert [os.path.basename(path) for path in train.source] == ["a.png", "b.png"]
    assert (train.labels, train.classes) == (None, ())


def test_class_only_in_test_is_an_error(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "b" / "1.png")
    with pytest.raises(UserError, match=r"test.b is a class that the training images do not have"):
        load_folder(tmp_path)


def test_images_beside_class_folders_are_an_error(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png"):
        load_folder(tmp_path)


def test_missing_and_empty_folders_say_so(tmp_path):
    with pytest.raises(UserError) as error:
        load_folder(tmp_path)
    assert str(tmp_path / "train") in message(error)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        load_folder(tmp_path)
    assert "holds no images" in message(error)
    save(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"test holds no images"):
        load_folder(tmp_path)


def test_links_are_followed_once(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    train = tmp_path / "train"
    save(train / "a" / "x" / "2.png")
    (train / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (train / "a" / "up").symlink_to(train / "a")
    (train / "a" / "top").symlink_to(train)
    (train / "a" / "self").symlink_to(train / "a" / "self")
    (train / "b").symlink_to(tmp_path / "elsewhere")
    found = load_folder(tmp_path).train
    assert [os.path.relpath(path, train) for path in found.source] == ["a/linked/1.png", "a/x/2.png", "b/1.png"]


# Transforms

MEANS, STDS = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def noise_image(width, height):
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8))


def augmentation(**changed):
    options = {
        "size": 16,
        "scale": (0.2, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "colorjitter": (0.4, 0.4, 0.4, 0.4),
        "random_grayscale": 0.2,
        "random_horizontal_flip": True,
        "means": MEANS,
        "stds": STDS,
    }
    return transforms.train_transform(**{**options, **changed})


def test_test_transform_resizes_crops_and_normalises():
    image = noise_image(40, 20)
    result = transforms.test_transform(8, 10, MEANS, STDS)(image)
    assert (result.shape, result.dtype) == ((3, 8, 8), torch.float32)
    small = np.asarray(image.resize((20, 10), Image.BILINEAR))[1:9, 6:14] / 255.0
    expected = (small - np.array(MEANS)) / np.array(STDS)
    assert np.allclose(result.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_test_transform_leaves_images_of_the_right_size_alone():
    image = noise_image(32, 32)
    result = transforms.test_transform(32, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(image)
    assert np.array_equal((result * 255).round().numpy().transpose(1, 2, 0), np.asarray(image))


def test_train_transform_without_chance_is_a_resize():
    image = noise_image(32, 32)
    plain = augmentation(
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        colorjitter=(0.0,) * 4,
        random_grayscale=0.0,
        random_horizontal_flip=False,
    )
    expected = TF.normalize(TF.to_tensor(image.resize((16, 16), Image.BILINEAR)), MEANS, STDS)
    assert torch.equal(plain(image), expected)


def test_grey_comes_last_and_flip_mirrors():
    image = noise_image(16, 16)
    grey = augmentation(random_grayscale=1.0, means=(0.0,) * 3, stds=(1.0,) * 3)(image)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "colorjitter": (0.0,) * 4, "random_grayscale": 0.0}
    kept = augmentation(**options, random_horizontal_flip=False)(image)
    results = [augmentation(**options)(image) for _ in range(20)]
    mirrored = [torch.equal(result, kept.flip(2)) for result in results]
    assert all(turned or torch.equal(result, kept) for turned, result in zip(mirrored, results))
    assert 0 < sum(mirrored) < 20


# Loading


def random_images(count):
    return ImageSet(np.random.RandomState(1).randint(0, 256, (count, 20, 20, 3), np.uint8))


def by_row(loader, order, salt):
    """Each row's image."""
    return {row: image for images, rows in loader.batches(order, salt) for image, row in zip(images, rows.tolist())}


def loader_of(images, transform=None, batch_size=4, workers_num=0, seed=5):
    return WorkerLoader(images, transform or augmentation(), batch_size, workers_num, seed, CPU)


def test_batches_follow_the_order():
    loader = loader_of(random_images(10))
    order = [7, 0, 3, 3, 9, 1]
    for given in (order, torch.tensor(order), torch.tensor(order).split(4)):
        batches = list(loader.batches(given, (0, 0)))
        assert [rows.tolist() for _, rows in batches] == [[7, 0, 3, 3], [9, 1]]
        assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
        assert all(images.dtype == torch.float32 and rows.dtype == torch.int64 for images, rows in batches)
    assert list(loader.batches([], ())) == []


def test_augmentation_is_the_same_for_every_number_of_workers():
    images = random_images(11)
    results = []
    for workers_num in (0, 1, 2):
        loader = loader_of(images, workers_num=workers_num)
        results.append([list(loader.batches(order, salt)) for order, salt in ORDERS_AND_SALTS])
        loader.close()
    for result in results[1:]:
        for epoch, expected in zip(result, results[0]):
            assert len(epoch) == len(expected)
            for (found, found_rows), (wanted, wanted_rows) in zip(epoch, expected):
                assert torch.equal(found, wanted)
                assert torch.equal(found_rows, wanted_rows)


ORDERS_AND_SALTS = [(range(11), (0, 0)), ([3, 1, 10, 4, 5], (0, 1)), (range(10, -1, -1), (1, 0))]


def test_augmentation_depends_on_seed_salt_and_row_alone():
    images = random_images(10)
    base = by_row(loader_of(images), range(10), (1, 2))
    other = by_row(loader_of(images, batch_size=3), [9, 2, 4, 7], (1, 2))
    assert all(torch.equal(other[row], base[row]) for row in other)
    for changed in (by_row(loader_of(images), range(10), (2, 1)), by_row(loader_of(images, seed=6), range(10), (1, 2))):
        assert not any(torch.equal(changed[row], base[row]) for row in range(10))


class Constant:
    """A transform that returns random numbers instead of the image."""

    def __call__(self, image):
        return torch.tensor([torch.rand(()).item(), random.random()]).view(2, 1, 1).expand(2, 3, 3)


def test_rows_draw_different_numbers_from_both_generators():
    drawn = by_row(loader_of(random_images(10), Constant()), range(10), (0,))
    for place in (0, 1):
        assert len({image[place, 0, 0].item() for image in drawn.values()}) == 10


@pytest.mark.parametrize("workers_num", [0, 1])
def test_loading_does_not_change_the_callers_random_state(workers_num):
    loader = loader_of(random_images(6), workers_num=workers_num)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for _ in loader.batches(range(6), (0,)):
        assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    loader.close()


def workers():
    return {child.pid for child in multiprocessing.active_children()}


def no_workers_within(seconds):
    until = time.monotonic() + seconds
    while workers() and time.monotonic() < until:
        time.sleep(0.02)
    return not workers()


def test_workers_persist_between_epochs_and_end_on_close():
    assert no_workers_within(5)
    loader = loader_of(random_images(8), workers_num=2)
    list(loader.batches(range(8), (0,)))
    first = workers()
    list(loader.batches(range(8), (1,)))
    assert len(first) == 2
    assert workers() == first
    loader.close()
    assert no_workers_within(5)
    assert len(list(loader.batches(range(8), (2,)))) == 2
    del loader
    assert no_workers_within(5)


def test_workers_end_when_the_consumer_stops_early():
    loader = loader_of(random_images(40), workers_num=2)
    iterator = loader.batches(range(40), (0,))
    next(iterator)
    assert len(workers()) == 2
    iterator.close()
    assert no_workers_within(5)

    def consume():
        for _ in loader.batches(range(40), (0,)):
            raise KeyError("the consumer's own")

    with pytest.raises(KeyError):
        consume()
    assert no_workers_within(5)
    assert len(by_row(loader, range(40), (0,))) == 40
    loader.close()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_pinned_batches_are_the_same_and_leave_no_workers():
    assert no_workers_within(5)
    images, device = random_images(40), torch.device("cuda", 0)
    loader = WorkerLoader(images, augmentation(), 4, 2, 5, device)
    wanted = loader_of(images).batches(range(40), (0,))
    iterator = loader.batches(range(40), (0,))
    for _ in range(3):
        (found, rows), (expected, expected_rows) = next(iterator), next(wanted)
        assert found.device == rows.device == device
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(rows.cpu(), expected_rows)
    iterator.close()
    assert no_workers_within(10)


def test_two_concurrent_iterations_do_not_mix():
    loader = loader_of(random_images(12), workers_num=1)
    first, second = loader.batches(range(12), (0,)), loader.batches(range(11, -1, -1), (0,))
    rows = [(one.tolist(), two.tolist()) for (_, one), (_, two) in zip(first, second)]
    assert rows[0] == ([0, 1, 2, 3], [11, 10, 9, 8])
    assert len(rows) == 3
    loader.close()


@pytest.mark.parametrize("workers_num", [0, 1, 2])
def test_an_unreadable_image_is_a_user_error_of_one_line(tmp_path, workers_num):
    paths = [str(save(tmp_path / f"{i}.png")) for i in range(8)]
    (tmp_path / "5.png").write_bytes(b"no image")
    loader = loader_of(ImageSet(tuple(paths)), workers_num=workers_num)
    iterator = loader.batches(range(8), (0,))
    assert next(iterator)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError) as error:
        next(iterator)
    assert message(error).startswith(paths[5])
    assert no_workers_within(5)


def test_images_of_odd_sizes_pass_through_both_transforms(tmp_path):
    save(tmp_path / "pixel.png", size=(1, 1))
    save(tmp_path / "line.png", size=(90, 1))
    Image.new("RGBA", (5, 70), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    images = ImageSet(tuple(str(path) for path in sorted(tmp_path.iterdir())))
    for transform in (augmentation(), transforms.test_transform(16, 20, MEANS, STDS)):
        batch, _ = next(loader_of(images, transform).batches(range(4), (0,)))
        assert batch.shape == (4, 3, 16, 16)
        assert torch.isfinite(batch).all()
