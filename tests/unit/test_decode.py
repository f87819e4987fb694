"""read_rgb decodes every picture as a viewer shows it, the same from a file and from an opened image."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datasets
from datasets.files.decode import is_image, is_unreadable_image, read_rgb
from datasets.files.in_memory import shrink
from datasets.image_set import ImageSet
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.errors import UnreadableImage, UserError
from lib.export.model import Model, Preprocessing

RED, WHITE = (200, 0, 30), (255, 255, 255)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, bits, colours, row, *others):
    """One row of pixels; `colours`: 0 grey, 2 RGB."""
    head = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    body = chunk(b"IHDR", head) + b"".join(others) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(content):
    """The pixels decoded from a file, which must equal those from an image that is opened but not decoded."""
    image = Image.open(io.BytesIO(content))
    opened = np.asarray(read_rgb(image))
    assert np.array_equal(np.asarray(read_rgb(image)), opened)  # asked a second time
    return opened


def bitmap(header_size):
    """Four red pixels of 32 bits in a BMP file, the fourth byte of each 0."""
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) if header_size > 40 else b""
    head = struct.pack("<IiiHHIIiiII", header_size, 2, 2, 1, 32, 3 if masks else 0, 16, 0, 0, 0, 0) + masks
    head = head.ljust(header_size, b"\0")
    content = bytes([RED[2], RED[1], RED[0], 0]) * 4
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 16, 0, 0, 14 + len(head)) + head + content


@pytest.mark.parametrize("header_size", [40, 56, 124])
def test_a_bitmap_of_32_bits_without_alpha_shows_its_colours(header_size):
    assert pixels(bitmap(header_size)).tolist() == [[list(RED)] * 2] * 2


def test_a_targa_file_whose_alpha_is_unused_shows_its_colours():
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, 0x20)
    colour = [RED[2], RED[1], RED[0]]
    assert pixels(head + bytes([*colour, 0] * 2)).tolist() == [[list(RED)] * 2]
    assert pixels(head + bytes([*colour, 0, *colour, 255])).tolist() == [[list(WHITE), list(RED)]]


@pytest.mark.parametrize(
    ("bits", "colours", "width", "row", "transparent", "expected"),
    [
        (16, 0, 3, struct.pack(">HHH", 1028, 30000, 65535), (30000,), [4, 255, 255]),
        (8, 0, 2, bytes([5, 6]), (5,), [255, 6]),
        (4, 0, 2, bytes([0x56]), (5,), [255, 102]),
        (2, 0, 4, bytes([0b00011011]), (1,), [0, 255, 170, 255]),
        (1, 0, 8, bytes([0b10101010]), (0,), [255] * 8),
        (16, 2, 2, struct.pack(">6H", 1000, 2000, 3000, 2570, 2570, 2570), (1000, 2000, 3000), [255, 10]),
        (8, 2, 2, bytes([5, 6, 7, 9, 9, 9]), (5, 6, 7), [255, 9]),
    ],
)
def test_one_transparent_value_of_a_png_of_any_depth_shows_white(bits, colours, width, row, transparent, expected):
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    assert pixels(png(width, bits, colours, row, key))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_png_texts_and_profiles_of_any_length_are_ignored(tmp_path, kind, behind):
    text = b"a" * (70 << 20 if kind == b"tEXt" else 3 << 20)  # Pillow takes 64 MiB and 1 MiB
    packed = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"tEXt": b"k\0"}[kind]
    long = chunk(kind, packed + (text if kind == b"tEXt" else zlib.compress(text)))
    content = png(2, 8, 2, bytes(range(6)), *([] if behind else [long]))
    if behind:
        content = content[:-12] + long + content[-12:]
    (tmp_path / "x.png").write_bytes(content)
    assert np.asarray(read_rgb(str(tmp_path / "x.png"))).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_tiff_greys_follow_the_photometric_interpretation(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo={262: 0})  # 0 is white
    assert np.asarray(read_rgb(tmp_path / "x.tif"))[0, :, 0].tolist() == [255, 155, 0]
    Image.fromarray(values).save(tmp_path / "y.tif")
    assert np.asarray(read_rgb(tmp_path / "y.tif"))[0, :, 0].tolist() == [0, 100, 255]
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0])  # 12 bits each: 0, 2048, 4095
    tags = {256: (3, 3), 257: (3, 1), 258: (3, 12), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (3, 1), 279: (3, 5)}
    tags[273] = (3, 8 + 2 + 12 * 9 + 4)
    entries = b"".join(struct.pack("<HHIHH", tag, kind, 1, value, 0) for tag, (kind, value) in sorted(tags.items()))
    content = b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + packed
    assert pixels(content)[0, :, 0].tolist() == [0, 128, 255]


PREPARATION = Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def model():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4, bias=False))
    torch.manual_seed(0)
    nn.init.normal_(network[1].weight)
    return Model(network, PREPARATION, None, torch.device("cpu"))


def odd_pictures(folder):
    """One picture on each line that `convert("RGB")` shows otherwise than a viewer."""
    random = np.random.RandomState(0)
    colours = Image.fromarray(random.randint(0, 256, (20, 12, 3)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(folder / "turned.jpg", exif=turned)
    colours.save(folder / "turned.png", exif=turned)
    rgba = colours.convert("RGBA")
    rgba.putalpha(Image.fromarray(random.randint(0, 256, (20, 12)).astype(np.uint8)))
    rgba.save(folder / "rgba.png")
    rgba.save(folder / "rgba.webp", lossless=True)
    rgba.convert("LA").save(folder / "la.png")
    Image.fromarray(random.randint(0, 65536, (20, 12)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(random.randint(0, 65536, (20, 12)).astype(np.uint16)).save(folder / "deep.tif")
    colours.convert("P").save(folder / "palette.gif", transparency=3)
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "zeros.bmp").write_bytes(bitmap(124))
    return sorted(folder.iterdir())


def test_an_opened_image_gives_the_features_of_its_file(model, tmp_path):
    for path in odd_pictures(tmp_path):
        of_file = model.features(path)
        decoded = Image.open(path)
        decoded.load()
        before = decoded.tobytes()
        for given in (Image.open(path), decoded, [Image.open(path)], [str(path)]):
            assert torch.equal(model.features(given), of_file), path
        assert torch.equal(model.features(io_image(path)), of_file), path
        assert decoded.tobytes() == before
        assert torch.equal(model.preprocessing(Image.open(path)), model.preprocessing(str(path)))
    assert torch.equal(model.folder(tmp_path)[1], model.features(sorted(map(str, tmp_path.iterdir()))))


def io_image(path):
    return Image.open(io.BytesIO(path.read_bytes()))


def test_images_without_colours_are_refused_as_file_and_opened(model, tmp_path):
    Image.fromarray(np.zeros((9, 9), dtype=np.float32)).save(tmp_path / "x.tif")
    for given in (tmp_path / "x.tif", Image.open(tmp_path / "x.tif"), Image.new("F", (9, 9))):
        with pytest.raises(UnreadableImage, match="floating-point"):
            model.features(given)
    noise = np.random.RandomState(0).randint(0, 256, (99, 99, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-300])
    for given in (tmp_path / "x.jpg", Image.open(tmp_path / "x.jpg")):
        with pytest.raises(UnreadableImage, match="not readable as an image: .*truncated"):
            model.features(given)


def test_an_argument_that_is_no_picture_is_named(model):
    file = io.BytesIO(b"a\nb")
    for given in (np.zeros((8, 8, 3)), [b"a.png"], b"a.png", None, [None], 7, file, [file]):
        kind = "(ndarray|bytes|NoneType|int|BytesIO)"
        with pytest.raises(UserError, match=f"^a {kind} is not a picture; give paths, PIL images, or a batch") as error:
            model.features(given)
        if not isinstance(given, (list, np.ndarray)):
            assert str(error.value).startswith(f"a {type(given).__name__} is")


@pytest.mark.parametrize("size", [(60, 90), (900, 700)])
def test_a_model_shrinks_files_and_images_as_in_training(tmp_path, size):
    """Large JPEG files are decoded at a smaller size, in the same way from a path and from an opened image."""
    pixels = np.random.RandomState(0).randint(0, 256, (size[1] // 10, size[0] // 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size, Image.BILINEAR).save(tmp_path / "x.jpg", quality=90)
    path = str(tmp_path / "x.jpg")
    shrinking = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3, shrink=32)
    square = Image.fromarray(shrink(ImageSet([path]), 32, 0).pixels[0])
    expected = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3)(square)
    assert torch.equal(shrinking(path), expected)
    assert torch.equal(shrinking(Image.open(path)), expected)
    assert len(shrinking.steps()) == 6
    assert "scale it to 32 x 32 pixels" in shrinking.steps()[1]


def test_pictures_are_what_pillow_can_decode():
    for name in ("a.jpg", "a.JFIF", "b.jpe", "c.tga", "d.psd", "e.PNG", "f.mpo", "g.ico", "i.pcx", "x/.y.bmp"):
        assert is_image(name), name
    for name in ("a.mpg", "b.pdf", "c.h5", "d.eps", "e.txt", "f", "g.wmf", "jpg", ".jpg", "h.grib"):
        assert not is_image(name), name
    for name in ("a.CR2", "b.svg", "c.nef"):
        assert is_unreadable_image(name), name
        assert not is_image(name), name
    assert not is_unreadable_image("a.txt")


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        ((50, 70), {"shrink": 40}),  # files in memory, scaled to 24
        ((50, 70), {"shrink": 24}),  # not scaled
        ((30, 20), {}),  # decoded once, not shrunk
        ((60, 2), {}),  # so long that the middle is taken first
        ((30, 20), {"resize": 31}),
        ((24, 24), {}),
        ((50, 70), {"shrink": 40, "augment_on": "workers"}),
    ],
)
def test_a_picture_has_the_same_pixels_in_a_run_and_by_preprocessing(side, changes, tmp_path):
    """Bit for bit, grey and rotated pictures included; --export reads as a run does, --embed by `Preprocessing`."""
    rng = np.random.default_rng(0)
    for number in range(9):
        picture = Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))
        if number % 3 == 1:
            picture = picture.convert("L")
        upside_down = picture.getexif()
        upside_down[0x0112] = 3 if number % 3 == 2 else 1
        picture.save(tmp_path / f"{number}.{'jpg' if number % 2 else 'png'}", exif=upside_down)
    options = replace(Options(), size=24, dataset="photos", workers_num=0, **changes)
    split = datasets.load("photos", str(tmp_path), False)
    pipeline = Pipeline(split, options, torch.device("cpu"))
    assert pipeline.on_device == ("augment_on" not in changes)
    statistics = (pipeline.means, pipeline.stds)
    preprocessing = Preprocessing.of(options.size, options.resize, statistics, options.shrink)
    expected = torch.stack([preprocessing(path) for path in split.train.source])
    assert torch.equal(torch.cat([images for images, _ in pipeline.train_batches_plain()]), expected)
    assert torch.equal(pipeline.sample(9), expected)
