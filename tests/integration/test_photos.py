"""Folders of photos: found files, labels, shrinking, and whole runs without labels."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import datasets
import main
from datasets.files import in_memory as shrinking
from datasets.files.in_memory import shrink
from datasets.image_set import UNLABELLED, ImageSet
from datasets.pipeline import Pipeline
from lib.config import collect
from lib.errors import UserError
from lib.export import network_files


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A temporary folder in place of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


FILES = ["a/1.jpg", "a/deep/er/2.JPG", "a/3.png", "b/4.jpeg", "b/5.gif", "b/6.webp", "b/7.bmp", "8.tif", "9.png"]


@pytest.fixture
def folder(tmp_path):
    """Nine pictures of nine sizes in seven formats and five modes, among other files."""
    root, random = tmp_path / "my pictures", np.random.RandomState(0)
    modes = {"a/3.png": "RGBA", "b/4.jpeg": "L", "b/5.gif": "P", "9.png": "I;16"}
    for number, name in enumerate(FILES):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (20 + 7 * number, 90 - 5 * number)
        if modes.get(name) == "I;16":
            Image.fromarray(random.randint(0, 65536, shape).astype(np.uint16)).save(file)
        else:
            image = Image.fromarray(random.randint(0, 256, (*shape, 3)).astype(np.uint8))
            image.convert(modes.get(name, "RGB")).save(file)
    (root / ".hidden").mkdir()
    Image.new("RGB", (9, 9)).save(root / ".hidden" / "x.jpg")
    Image.new("RGB", (9, 9)).save(root / "a" / "._1.jpg")
    for name in ("notes.txt", "a/film.mov", "b/phone.HEIC", ".DS_Store"):
        (root / name).write_text("no picture")
    (root / "b" / "again").symlink_to(root, target_is_directory=True)
    return root


def load(folder, labels=None):
    return datasets.load("photos", str(folder), False, labels)


def names(folder, images):
    return [os.path.relpath(path, folder) for path in images.paths]


def test_every_picture_at_any_depth_and_nothing_else(folder):
    split = load(folder)
    assert sorted(names(folder, split.train)) == sorted(FILES)
    assert split.test is None
    assert split.train.labels is None
    assert split.notes == (
        "skipped: 1 .heic (not readable here; convert them to JPEG to use them)",
        "skipped: 1 .mov, 1 .txt (not named like pictures)",
    )


def test_a_folder_without_pictures_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere; point --data-root at your pictures"):
        load(tmp_path / "nowhere")
    (tmp_path / "a.heic").write_text("")
    with pytest.raises(UserError, match=r"holds no pictures \(files ending in .jpg.*\); what it holds: 1 .heic$"):
        load(tmp_path)


def labels_by_name(folder, split):
    classes = dict(enumerate(split.train.classes))
    return {name: classes.get(label) for name, label in zip(names(folder, split.train), split.train.labels.tolist())}


def test_labels_from_folders(folder):
    split = load(folder, "folders")
    assert split.train.classes == ("a", "b")
    expected = {name: name[0] if "/" in name else None for name in FILES}
    assert labels_by_name(folder, split) == expected
    assert split.notes[-1] == "7 of 9 images have one of 2 labels; labels are for reports only"


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/1.jpg,cat\nb/4.jpeg,dog\n9.png,\n",
        "a/1.jpg,cat\nb/4.jpeg,dog\n",
        "\ufefffile;kind\r\na/1.jpg;cat\r\n\r\nb/4.jpeg;dog\r\n",
        'a/1.jpg\t"cat"\nb/4.jpeg\t dog \na/1.jpg\tcat\n',
        "{root}/a/1.jpg,cat\n./b/4.jpeg,dog\n",
    ],
)
def test_labels_from_tables(folder, tmp_path, text):
    table = tmp_path / "labels.csv"
    table.write_bytes(text.replace("{root}", str(folder)).encode())
    split = load(folder, str(table))
    found = {name: label for name, label in labels_by_name(folder, split).items() if label is not None}
    assert found == {"a/1.jpg": "cat", "b/4.jpeg": "dog"}
    assert (split.train.labels == UNLABELLED).sum() == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na/1.jpg,cat\nnone.jpg,dog\n", ", line 3: none.jpg is not a picture below"),
        ("a/1.jpg,cat\na/3.png,dog\na/1.jpg,dog\n", ", line 3: a/1.jpg is 'dog' here and 'cat' in line 1"),
        ("a/1.jpg,cat,x\n", ", line 1: 3 columns instead of 2"),
        ("a/1.jpg,cat\nb/4.jpeg,cat\n", ": at least two different labels are needed, there is only 'cat'"),
        ("path,label\n", ": at least two different labels are needed, there is none"),
        (None, ": cannot be read: No such file or directory; give `folders` or a CSV file of two columns"),
    ],
)
def test_mistakes_in_tables(folder, tmp_path, text, message):
    table = tmp_path / "labels.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(UserError) as error:
        load(folder, str(table))
    assert f"--labels {table}{message}" in str(error.value)


def test_labels_are_for_photos_only():
    with pytest.raises(UserError, match="--labels is for --dataset photos; digits brings its own labels"):
        collect(["--dataset", "digits", "--labels", "folders"])
    with pytest.raises(UserError, match="--shrink 16 is below --size 32; raise it"):
        collect(["--shrink", "16"])


def test_squares_are_the_middle_of_each_picture(folder):
    images = load(folder).train
    small = shrink(images, 8, 0)
    assert small.pixels.shape == (9, 8, 8, 3)
    assert list(small.paths) == list(images.paths)
    for row in range(len(images)):
        whole = images.read(row)
        side = min(whole.size)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        square = whole.crop((left, top, left + side, top + side)).resize((8, 8), Image.BILINEAR)
        difference = np.abs(small.pixels[row].astype(int) - np.asarray(square).astype(int))
        assert difference.mean() < 12, images.paths[row]  # half a pixel of rounding in pure noise


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path):
    y, x = np.mgrid[0:1200, 0:1600]
    pixels = np.stack([x / 1600 * 255, y / 1200 * 255, 128 + 100 * np.sin(x / 90)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    images = ImageSet([str(tmp_path / "large.jpg")])
    assert max(images.read(0, at_least=128).size) == 200
    expected = ImageOps.fit(Image.fromarray(pixels), (64, 64), Image.BILINEAR)
    assert np.abs(shrink(images, 64, 0).pixels[0].astype(int) - np.asarray(expected).astype(int)).max() <= 8


def counted(monkeypatch):
    read, opened = shrinking.read_rgb, []

    def count(path, at_least=None):
        opened.append(os.path.basename(path))
        return read(path, at_least)

    monkeypatch.setattr(shrinking, "read_rgb", count)
    return opened


def test_only_new_and_changed_files_are_read_again(folder, monkeypatch):
    opened = counted(monkeypatch)
    first = shrink(load(folder).train, 8, 0)
    assert len(opened) == 9
    opened.clear()
    assert np.array_equal(shrink(load(folder).train, 8, 0).pixels, first.pixels)
    assert opened == []
    Image.new("RGB", (50, 40), (255, 0, 0)).save(folder / "a" / "1.jpg")
    Image.new("RGB", (50, 40), (0, 255, 0)).save(folder / "a" / "new.png")
    (folder / "8.tif").unlink()
    again = shrink(load(folder).train, 8, 0)
    assert sorted(opened) == ["1.jpg", "new.png"]
    rows = {os.path.basename(path): row for row, path in enumerate(again.paths)}
    assert again.pixels[rows["new.png"]].tolist() == [[[0, 255, 0]] * 8] * 8
    assert np.array_equal(
        again.pixels[rows["9.png"]], first.pixels[[*map(os.path.basename, first.paths)].index("9.png")]
    )


def test_a_damaged_cache_is_rebuilt(folder, monkeypatch):
    first = shrink(load(folder).train, 8, 0)
    cache = folder.parent / ".and-cache" / "shrunk-8-training-my pictures.npz"
    cache.write_bytes(cache.read_bytes()[:200])
    opened = counted(monkeypatch)
    assert np.array_equal(shrink(load(folder).train, 8, 0).pixels, first.pixels)
    assert len(opened) == 9


def test_what_was_read_before_a_bad_file_is_kept(folder, monkeypatch):
    (folder / "b" / "6.webp").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b/6.webp: not readable as an image: its format is not known; replace"):
        shrink(load(folder).train, 8, 0)
    (folder / "b" / "6.webp").unlink()
    opened = counted(monkeypatch)
    shrink(load(folder).train, 8, 0)
    assert 0 < len(opened) < 8


def test_more_images_than_memory_are_an_error(folder):
    with pytest.raises(UserError, match="--shrink 1000000: 9 images would take .* GiB of memory; choose fewer pixels"):
        shrink(load(folder).train, 1_000_000, 0)


def test_several_processes_shrink_the_images_of_one(folder, monkeypatch):
    monkeypatch.setattr("datasets.files.parallel._FEW", 2)
    several = shrink(load(folder).train, 8, 2)
    os.remove(folder.parent / ".and-cache" / "shrunk-8-training-my pictures.npz")
    assert np.array_equal(shrink(load(folder).train, 8, 0).pixels, several.pixels)


def test_shrunken_photos_are_augmented_by_the_batch(folder):
    options = collect(["--dataset", "photos", "--shrink", "40", "--batch-size", "4"]).options
    pipeline = Pipeline(load(folder), options, torch.device("cpu"))
    assert pipeline.on_device
    images, _ = next(pipeline.train_batches(pipeline.epoch_order(0, 0), 0, 0))
    assert images.shape == (4, 3, 32, 32)
    assert len(pipeline.train.paths) == 9
    pipeline.close()


@pytest.fixture
def many(tmp_path):
    """Twenty-four pictures of one colour each, reddish ones and bluish ones."""
    random, root = np.random.RandomState(1), tmp_path / "many"
    rows = []
    for number in range(24):
        kind = ("red", "blue")[number % 2]
        colour = random.randint(0, 60, 3) + np.array([190, 0, 0] if kind == "red" else [0, 0, 190])
        file = root / str(number % 3) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30 + number, 50, 3), colour, dtype=np.uint8)).save(file)
        rows.append(f"{file.relative_to(root)},{kind}\n")
    (tmp_path / "kinds.csv").write_text("".join(rows[:20]))
    return root


QUICK = ["--cfgs", "configs/base.yaml", "configs/photos.yaml", "--network", "convnet", "--size", "8", "--shrink", "8",
         "--batch-size", "8", "--max-round", "2", "--max-epoch", "2", "--workers-num", "0", "--gpus", "cpu",
         "--session", "x", "--no-report", "--no-log-tfb"]  # fmt: skip
PICTURES = ["--report", "--log-tfb"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "x" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_without_labels_reports_no_accuracy(many, tmp_path, capsys):
    (many / "notes.txt").write_text("hello")
    assert main.main([*QUICK, *PICTURES, "--data-root", str(many), "--sess-dir", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    for word in ("kNN", "top-1", "consistency", "%,"):
        assert word not in out.replace("% kept", "")
    assert "without labels: loss, entropy, neighbours, clusters; no accuracy" in out
    assert "skipped: 1 .txt (not named like pictures)" in out
    assert "round 1 done: 6 anchors, loss " in out
    lines = metrics(tmp_path / "s")
    assert all(line["knn_top1"] is None and line["knn_top5"] is None and line["consistency"] is None for line in lines)
    assert all(line["entropy"] > 0 and -1 <= line["neighbour_cosine"] <= 1.000001 for line in lines)
    assert [line["neighbours_kept"] is None for line in lines] == [True, True, False, False]
    assert sum(lines[1]["clusters"]) == sum(lines[3]["clusters"]) == 24
    session = str(tmp_path / "s" / "x")
    assert main.main(["--resume", session, "--test-only"]) == 2
    assert "photos has no labelled test images, nor labelled training images" in capsys.readouterr().err


def test_labels_bring_leave_one_out_accuracies(many, tmp_path, capsys):
    labelled = [*QUICK, *PICTURES, "--data-root", str(many), "--labels", str(tmp_path / "kinds.csv")]
    assert main.main([*labelled, "--sess-dir", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "20 of 24 images have one of 2 labels" in out
    assert "evaluated leave-one-out: each labelled training image by the labels of its nearest others" in out
    closing = next(line for line in out.splitlines() if "recomputed" in line)
    assert closing.endswith("(leave-one-out)")
    assert all(line["knn_top1"] is not None for line in metrics(tmp_path / "s"))
    assert main.main(["--resume", str(tmp_path / "s" / "x"), "--test-only"]) == 0
    assert closing.split("recomputed: ")[1].split(" (")[0] in capsys.readouterr().out


def test_pictures_without_a_label_are_in_no_accuracy(many, tmp_path, capsys, monkeypatch):
    """20 of 24 pictures have a label."""
    monkeypatch.setattr(network_files, "onnx_packages_missing", lambda: ("onnx",))  # its export takes seconds
    labelled = [*QUICK, "--data-root", str(many), "--labels", str(tmp_path / "kinds.csv"), "--max-round", "1"]
    cluster = ["--protocol", "cluster", "--num-clusters", "2"]
    assert main.main([*labelled, *cluster, "--sess-dir", str(tmp_path / "s")]) == 0
    with open(tmp_path / "s" / "x" / "cluster-table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["size"]) for row in rows) == 24
    assert [sum(int(row[kind]) for row in rows) for kind in ("blue", "red")] == [10, 10]
    best = max(int(rows[0]["blue"]) + int(rows[1]["red"]), int(rows[0]["red"]) + int(rows[1]["blue"]))
    assert metrics(tmp_path / "s")[-1]["cluster_accuracy"] == best / 20
    session = ["--resume", str(tmp_path / "s" / "x")]
    assert main.main([*session, "--export", str(tmp_path / "e"), "--num-clusters", "2", "--neighbours", "3"]) == 0
    with open(tmp_path / "e" / "images.csv", newline="") as file:
        told = [(row["label"], row["class"]) for row in csv.DictReader(file)]
    assert sorted(told) == [("", "")] * 4 + [("0", "blue")] * 10 + [("1", "red")] * 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png,x\nb.png,y\n".encode("utf-16"), "it is not UTF-8 text; save it as CSV in UTF-8"),
        (b'a.png,"' + b"x" * 200_000 + b'"\n', "field larger than field limit"),
    ],
)
def test_files_that_are_no_label_tables(folder, tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(folder, labels=str(tmp_path / "t.csv"))


def test_labels_for_names_that_are_not_utf_8_or_have_line_breaks(tmp_path):
    root = tmp_path / "p"
    root.mkdir()
    names = [b"caf\xe9.png", b"two\nlines.png", b"plain.png"]
    for name in names:
        with open(os.path.join(os.fsencode(root), name), "wb") as file:
            Image.new("RGB", (20, 20)).save(file, "PNG")
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(zip(map(os.fsdecode, names), "xyx"))
    split = load(root, labels=str(tmp_path / "t.csv"))
    found = {os.fsencode(os.path.basename(path)): label for path, label in zip(split.train.paths, split.train.labels)}
    assert found == dict(zip(names, (0, 1, 0)))


def test_labels_change_nothing_but_the_reports(many, tmp_path, capsys):
    from lib.checkpoint import io as checkpoint

    for place, more in (("with", ["--labels", str(tmp_path / "kinds.csv")]), ("without", [])):
        assert main.main([*QUICK, "--data-root", str(many), "--sess-dir", str(tmp_path / place), *more]) == 0
    one, other = (checkpoint.load(tmp_path / place / "x/checkpoint/0001-00006.ckpt") for place in ("with", "without"))
    assert torch.equal(one["npc"]["memory"], other["npc"]["memory"])
    assert one["ANs_discovery"]["neighbours"].tolist() == other["ANs_discovery"]["neighbours"].tolist()
    unlabelled = ("loss", "entropy", "neighbours_kept", "neighbour_cosine", "clusters")
    for left, right in zip(metrics(tmp_path / "with"), metrics(tmp_path / "without")):
        assert [left[name] for name in unlabelled] == [right[name] for name in unlabelled]


def test_a_resumed_run_remembers_the_neighbours_of_the_round_before(many, tmp_path, capsys):
    base = [*QUICK, "--data-root", str(many), "--lr-policy", "step"]  # which does not depend on the number of rounds
    assert main.main([*base, "--sess-dir", str(tmp_path / "whole")]) == 0
    assert main.main([*base, "--sess-dir", str(tmp_path / "parts"), "--max-round", "1"]) == 0
    resume = ["--resume", str(tmp_path / "parts" / "x"), "--max-round", "2"]
    assert main.main(resume) == 0
    kept = [[line["neighbours_kept"] for line in metrics(tmp_path / place)] for place in ("whole", "parts")]
    assert kept[0] == kept[1]
    assert kept[0][-1] is not None


def test_a_run_resumes_with_its_session_among_the_pictures(many, tmp_path, capsys):
    """TensorBoard's pictures in the session do not count as the user's."""
    arguments = [*QUICK, "--log-tfb", "--data-root", str(many), "--sess-dir", str(many / "sessions")]
    assert main.main([*arguments, "--max-round", "1"]) == 0
    assert "24 training" in capsys.readouterr().out
    assert list((many / "sessions").rglob("*.png"))
    assert main.main(["--resume", str(many / "sessions" / "x"), "--max-round", "2"]) == 0
    out = capsys.readouterr().out
    assert "24 training" in out
    assert "skipped: 1 session folder of runs" in out


def test_a_picture_that_cannot_be_read_is_named_or_skipped(many, tmp_path, capsys):
    (many / "0" / "0.png").write_bytes(b"broken")
    arguments = [*QUICK, "--data-root", str(many), "--sess-dir", str(tmp_path / "s"), "--max-round", "1"]
    assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert "0.png: not readable as an image" in err
    assert err.endswith("; replace or remove it, or leave out all such files with --skip-bad-images\n")
    assert not (tmp_path / "s").exists()
    assert main.main([*arguments, "--skip-bad-images"]) == 0
    out = capsys.readouterr().out
    assert "photos: 23 training, no test images" in out
    assert "1 unreadable image left out" in out
