"""Image files of unusual kinds: each is decoded as a viewer shows it, or is an error of one line that names it."""

import os
import resource

import numpy as np
import pytest
from PIL import Image

from datasets.files.decode import read_rgb
from datasets.files.in_memory import decode_small
from datasets.image_set import ImageSet
from datasets.sources.image_folder import read_folder
from datasets.transforms.pil import test_transform as transform_of_tests
from lib.errors import UserError
from tests.helpers.runs import call

RED, BLUE = (200, 30, 40), (20, 40, 220)


def two_halves(mode="RGB", size=(40, 20)):
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.quantize(8) if mode == "P" else image.convert(mode)


def near(image, place, colour, within=12):
    return np.abs(np.asarray(image)[place[1], place[0]].astype(int) - colour).max() <= within


@pytest.mark.parametrize(
    ("suffix", "mode", "options"),
    [
        ("jpg", "RGB", {"quality": 95}),
        ("jpg", "CMYK", {"quality": 95}),
        ("tif", "CMYK", {}),
        ("png", "P", {}),
        ("gif", "P", {}),
        ("png", "RGBA", {}),
        ("webp", "RGBA", {"lossless": True}),
        ("jpg", "YCbCr", {}),
        ("bmp", "RGB", {}),
    ],
)
def test_colour_modes(tmp_path, suffix, mode, options):
    path = tmp_path / f"x.{suffix}"
    two_halves(mode).save(path, **options)
    image = read_rgb(str(path))
    assert image.mode == "RGB"
    assert near(image, (5, 10), RED, 25)
    assert near(image, (35, 10), BLUE, 25)


def test_images_of_16_bits_and_1_bit(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.asarray(read_rgb(str(tmp_path / "x.png")))[..., 0].tolist() == [[0, 100], [200, 255]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "y.png")
    assert np.asarray(read_rgb(str(tmp_path / "y.png")))[..., 1].tolist() == [[255, 0]]


def test_what_is_transparent_is_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (*RED, 0))
    image.putpixel((0, 0), (*BLUE, 255))
    image.save(tmp_path / "x.png")
    read = read_rgb(str(tmp_path / "x.png"))
    assert read.getpixel((3, 3)) == (255, 255, 255)
    assert read.getpixel((0, 0)) == BLUE


def test_lab_is_read_where_pillow_can_and_named_where_it_cannot(tmp_path):
    image = Image.new("LAB", (8, 8))
    image.save(tmp_path / "x.tif")
    try:
        image.convert("RGB")
    except ValueError:
        with pytest.raises(UserError, match=r"x\.tif: not readable as an image: .+; replace or remove it"):
            read_rgb(str(tmp_path / "x.tif"))
    else:
        assert read_rgb(str(tmp_path / "x.tif")).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright(tmp_path, orientation):
    """The file stores the scene as a rotated camera saw it; decoded, it is upright."""
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpositions that make the stored pixels
    scene = two_halves(size=(16, 8))
    scene.paste((0, 255, 0), (0, 0, 4, 4))
    stored = scene if orientation == 1 else scene.transpose(turn_back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_rgb(str(tmp_path / "x.png"))), np.asarray(scene))


def test_a_wrong_suffix_is_accepted_and_a_file_that_is_no_image_is_named(tmp_path):
    two_halves().save(tmp_path / "x.jpg", format="PNG")
    assert near(read_rgb(str(tmp_path / "x.jpg")), (5, 10), RED, 0)
    (tmp_path / "y.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"y\.jpg: .*its format is not known"):
        read_rgb(str(tmp_path / "y.jpg"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_a_file_truncated_anywhere_is_named(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError) as error:
            read_rgb(str(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert "the file is empty" in str(error.value) or share > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 1), (20_000, 300), (1, 20_000)])
def test_extreme_sizes_become_squares_in_little_memory(tmp_path, size):
    path = tmp_path / "x.png"
    Image.new("RGB", size, RED).save(path)
    code = (
        "import sys\n"
        "from datasets.files.decode import read_rgb\n"
        "from datasets.transforms.pil import test_transform, train_transform\n"
        "import resource, torch\n"
        "image = read_rgb(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "one = test_transform(224, 256, (0.5,) * 3, (0.5,) * 3)(image)\n"
        "two = train_transform(224, (0.2, 1), (0.75, 1.33), (0.4,) * 4, 0.2, True, (0.5,) * 3, (0.5,) * 3)(image)\n"
        "assert one.shape == two.shape == (3, 224, 224) and torch.isfinite(two).all()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    status, out, err = call(path, program=("-c", code))
    assert status == 0, err
    assert int(out) < 300  # MiB


def test_the_test_transform_of_a_long_image_equals_resize_and_crop():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (10, 900, 3), dtype=np.uint8))  # 90 times as long as wide
    from torchvision.transforms import functional as F

    whole = F.center_crop(F.resize(image, 20), 20)
    ours = transform_of_tests(20, 20, (0.0,) * 3, (1.0,) * 3)(image)
    difference = np.abs(ours.numpy().transpose(1, 2, 0) * 255 - np.asarray(whole, dtype=float))
    assert difference.max() <= 1


def test_a_decompression_bomb_is_named_without_being_unpacked(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path, optimize=True)
    assert path.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"bomb\.png: .*more than 178,956,970 pixels"):
        read_rgb(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize(
    "name", ["with space.jpg", "new\nline.jpg", "\udcff\udcfe.jpg", "ä中😀.jpg", "-rf.jpg", "tab\t.jpg"]
)
def test_odd_names_are_read_and_named_in_one_line(tmp_path, name):
    train = tmp_path / "train"
    train.mkdir()
    two_halves().save(os.fsencode(train / "a.png"))
    two_halves().save(train / "tmp.jpg")
    os.rename(train / "tmp.jpg", os.fsencode(str(train / name)))
    images = read_folder(train, "imagefolder", None)
    assert len(images) == 2
    assert all(images.read(row).size == (40, 20) for row in range(2))
    with open(os.fsencode(str(train / name)), "wb") as file:
        file.write(b"damaged")
    row = next(row for row in range(2) if images.source[row].endswith(".jpg"))
    with pytest.raises(UserError) as error:
        images.read(row)
    assert "\n" not in str(error.value)
    str(error.value).encode("utf-8")


def test_links_that_loop_are_named_or_followed_once(tmp_path):
    train = tmp_path / "train"
    (train / "a").mkdir(parents=True)
    two_halves().save(train / "a" / "1.png")
    (train / "a" / "self").symlink_to(train / "a")
    (train / "a" / "up").symlink_to(train)
    images = read_folder(train, "imagefolder", None)
    assert len(images) == 1
    (train / "a" / "2.png").symlink_to("2.png")
    (train / "a" / "3.png").symlink_to("nowhere.png")
    images = read_folder(train, "imagefolder", None)
    assert len(images) == 3
    for row, reason in ((1, "Too many levels of symbolic links"), (2, "No such file")):
        with pytest.raises(UserError, match=reason):
            images.read(row)


def test_pipes_and_devices_are_skipped(tmp_path):
    train = tmp_path / "train"
    train.mkdir()
    two_halves().save(train / "1.png")
    os.mkfifo(train / "2.png")
    (train / "3.png").symlink_to("/dev/zero")
    assert len(read_folder(train, "imagefolder", None)) == 1


def test_a_cache_of_another_kind_is_ignored(tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    train = tmp_path / "data" / "train"
    train.mkdir(parents=True)
    paths = []
    for number in range(3):
        two_halves(size=(8, 8)).save(train / f"{number}.png")
        paths.append(str(train / f"{number}.png"))
    assert decode_small(ImageSet(paths)).pixels.shape == (3, 8, 8, 3)
    (cache,) = (tmp_path / "data" / ".and-cache").glob("*.npy")
    good = cache.read_bytes()
    np.save(cache, np.array([Planted()], dtype=object), allow_pickle=True)
    for content in (cache.read_bytes(), b"", b"PK\3\4", good[:100], b"\x93NUMPY\1\0\xff\xff{", good[:40] + b"((((" * 9):
        cache.write_bytes(content)
        assert np.array_equal(decode_small(ImageSet(paths)).pixels[0], np.asarray(read_rgb(paths[0])))
    assert not (tmp_path / "trap").exists()
