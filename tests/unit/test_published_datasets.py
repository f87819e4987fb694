"""imagenet12, cub200 and dogs: tiny copies of their published layouts, and their possible faults."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import datasets
from datasets.sources import imagenet12
from lib.config import collect
from lib.config.registry import statistics_of
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def save(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (shade, shade, shade)).save(path, format="PNG")  # whatever the name: shades stay exact


def shades(images):
    return [images.read(row).getpixel((0, 0))[0] for row in range(len(images))]


def error_of(name, root):
    with pytest.raises(UserError) as error:
        datasets.load(name, str(root), False)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"--dataset {name}: ")
    return text


# ImageNet

WNIDS = ("n01440764", "n01443537", "n15075141")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet12, "_CLASSES", len(WNIDS))
    for label, wnid in enumerate(WNIDS):
        for number in (10, 2):
            save(tmp_path / "train" / wnid / f"{wnid}_{number}.JPEG", 10 * label + number % 10)
        save(tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{label}.JPEG", 100 + label)
    save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", 200)  # as the archive has it: without labels
    return tmp_path


def test_imagenet_is_read_from_train_and_val(imagenet):
    split = datasets.load("imagenet12", str(imagenet), False)
    assert split.name == "imagenet12"
    assert split.train.classes == split.test.classes == WNIDS
    assert split.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert shades(split.train) == [0, 2, 10, 12, 20, 22]
    assert split.test.labels.tolist() == [0, 1, 2]
    assert shades(split.test) == [100, 101, 102]
    assert statistics_of(split.name) == IMAGENET


def test_imagenet_is_listed_and_fingerprinted_without_opening_a_file(imagenet):
    expected = datasets.load("imagenet12", str(imagenet), False).train.fingerprint()
    for path in imagenet.rglob("*.JPEG"):
        path.unlink()
        path.symlink_to("nowhere")
    split = datasets.load("imagenet12", str(imagenet), False)
    assert len(split.train) == 6
    assert split.train.fingerprint() == expected


def test_unsorted_validation_images_are_an_error_that_says_what_to_do(imagenet):
    for wnid in WNIDS:
        for path in (imagenet / "val" / wnid).iterdir():
            path.rename(imagenet / "val" / path.name)
        (imagenet / "val" / wnid).rmdir()
    text = error_of("imagenet12", imagenet)
    assert f"the images lie directly in {imagenet / 'val'}" in text
    assert "valprep.sh" in text


def test_imagenet_must_have_1000_classes(imagenet, monkeypatch):
    monkeypatch.undo()
    text = error_of("imagenet12", imagenet)
    assert "holds 3 class folders with images, not 1000" in text
    assert "--dataset imagefolder" in text


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_imagenet_folder_is_named(imagenet, part):
    (imagenet / part).rename(imagenet / "elsewhere")
    text = error_of("imagenet12", imagenet)
    assert f"there is no folder {imagenet / part}" in text
    assert "--data-root" in text
    (imagenet / part).mkdir()
    assert "holds no images" in error_of("imagenet12", imagenet)


def test_folders_that_are_not_imagenets(imagenet):
    (imagenet / "train" / WNIDS[1]).rename(imagenet / "train" / "goldfish")
    assert "goldfish is not named by a WordNet id" in error_of("imagenet12", imagenet)
    (imagenet / "train" / "goldfish").rename(imagenet / "train" / WNIDS[1])
    (imagenet / "val" / WNIDS[1]).rename(imagenet / "val" / "n00000000")
    assert "n00000000 is a class that the training images do not have" in error_of("imagenet12", imagenet)


# CUB

BIRDS = (
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    "010.Red winged_Blackbird/Red_Winged_Blackbird_0001.jpg",
)


@pytest.fixture
def birds(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    for shade, path in enumerate(BIRDS):
        save(folder / "images" / path, shade)
    for file, values in {
        "images.txt": BIRDS,
        "image_class_labels.txt": (1, 1, 2, 10),
        "train_test_split.txt": (0, 1, 1, 0),
    }.items():
        (folder / file).write_text("".join(f"{number} {value}\n" for number, value in enumerate(values, start=1)))
    return folder


def test_birds_from_their_folder_or_the_one_above(birds):
    for root in (birds, birds.parent):
        split = datasets.load("cub200", str(root), False)
        assert split.train.classes == split.test.classes
        assert split.train.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red winged_Blackbird")
        assert (shades(split.train), split.train.labels.tolist()) == ([1, 2], [0, 1])
        assert (shades(split.test), split.test.labels.tolist()) == ([0, 3], [0, 2])
        assert statistics_of(split.name) == IMAGENET


def test_missing_birds_say_what_to_link(tmp_path):
    text = error_of("cub200", tmp_path)
    assert "there is no images.txt" in text
    assert "ln -s /path/to/CUB_200_2011" in text


@pytest.mark.parametrize(
    ("file", "line", "content", "expected"),
    [
        ("images.txt", 3, "3", "images.txt, line 3: '3' is not a number and a value"),
        ("images.txt", 3, "", "images.txt, line 3: '' is not a number and a value"),
        ("images.txt", 3, "x a.jpg", "images.txt, line 3"),
        ("images.txt", 3, f"2 {BIRDS[2]}", "images.txt, line 3: image 2 was on line 2 already"),
        ("images.txt", 3, f"3 {BIRDS[1]}", "images.txt, line 3: "),
        ("images.txt", 2, f"2 {BIRDS[0]}", "images.txt, line 1: " + BIRDS[0] + " was listed before"),
        ("images.txt", 3, "3 002.Laysan_Albatross/none.jpg", "images.txt, line 3: there is no file "),
        ("images.txt", 3, "3 none.jpg", "images.txt, line 3: none.jpg is listed as class 2, but the image is in no "),
        ("images.txt", 3, f"7 {BIRDS[2]}", "image_class_labels.txt, line 3: image 3 is not in images.txt"),
        ("image_class_labels.txt", 3, "3 two", "image_class_labels.txt, line 3: 'two' is not a whole number"),
        ("image_class_labels.txt", 3, "3 1", "images.txt, line 3: "),
        ("image_class_labels.txt", 2, "2 9", "images.txt, line 1: " + BIRDS[0] + " is listed as class 1, but the im"),
        ("image_class_labels.txt", 3, "5 2", "image_class_labels.txt, line 3: image 5 is not in images.txt"),
        ("train_test_split.txt", 4, "4 2", "train_test_split.txt: image 4 has 2, not 1 (training) or 0 (test)"),
        ("train_test_split.txt", 4, None, "train_test_split.txt has no line for image 4 (images.txt, line 4)"),
    ],
)
def test_every_odd_line_about_birds_is_named(birds, file, line, content, expected):
    lines = (birds / file).read_text().splitlines()
    lines[line - 1 : line] = [] if content is None else [content]
    (birds / file).write_text("\n".join(lines) + "\n")
    text = error_of("cub200", birds)
    assert str(birds) in text
    assert expected in text


@pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt"])
def test_a_list_of_birds_that_cannot_be_read(birds, file):
    (birds / file).write_bytes(b"1 \xff\xfe\n")
    assert f"{birds / file} cannot be read: it is not text" in error_of("cub200", birds)
    (birds / file).unlink()
    assert f"{birds / file} cannot be read: No such file" in error_of("cub200", birds)


@pytest.mark.parametrize(("use", "lacking"), [(0, "training"), (1, "test")])
def test_birds_with_training_or_test_images_only(birds, use, lacking):
    (birds / "train_test_split.txt").write_text("".join(f"{number} {use}\n" for number in range(1, 5)))
    assert f"name no {lacking} image" in error_of("cub200", birds)


# Dogs

TRAIN_DOGS = (
    "n02085620-Chihuahua/n02085620_5927.jpg",
    "n02085782-Japanese_spaniel/n02085782_2.jpg",
    "n02085620-Chihuahua/n02085620_4441.jpg",
)
TEST_DOGS = ("n02085782-Japanese_spaniel/n02085782_1039.jpg",)


def write_list(file, paths, labels):
    cells = np.empty((len(paths), 1), dtype=object)
    cells[:, 0] = paths
    notes = np.empty((len(paths), 1), dtype=object)
    notes[:, 0] = [path.rsplit(".", 1)[0] for path in paths]
    file.parent.mkdir(exist_ok=True)
    savemat(file, {"file_list": cells, "annotation_list": notes, "labels": np.array(labels, dtype=float)[:, None]})


@pytest.fixture
def kennel(tmp_path):
    for shade, path in enumerate((*TRAIN_DOGS, *TEST_DOGS)):
        save(tmp_path / "Images" / path, shade)
    write_list(tmp_path / "lists" / "train_list.mat", TRAIN_DOGS, (1, 2, 1))
    write_list(tmp_path / "lists" / "test_list.mat", TEST_DOGS, (2,))
    write_list(tmp_path / "lists" / "file_list.mat", (*TRAIN_DOGS, *TEST_DOGS), (1, 2, 1, 2))
    return tmp_path


def test_dogs_with_lists_in_their_folder_or_beside_the_images(kennel):
    for _ in range(2):
        split = datasets.load("dogs", str(kennel), False)
        assert split.train.classes == ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
        assert (shades(split.train), split.train.labels.tolist()) == ([0, 1, 2], [0, 1, 0])
        assert (shades(split.test), split.test.labels.tolist()) == ([3], [1])
        assert statistics_of(split.name) == IMAGENET
        if (kennel / "lists").exists():
            for file in (kennel / "lists").iterdir():
                file.rename(kennel / file.name)
            (kennel / "lists").rmdir()


def test_missing_dogs_and_lists(kennel):
    (kennel / "lists" / "test_list.mat").unlink()
    assert "there is no test_list.mat in " in error_of("dogs", kennel)
    (kennel / "Images").rename(kennel / "images")
    assert f"there is no folder {kennel / 'Images'}" in error_of("dogs", kennel)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"MATLAB 5.0 MAT-file" + 200 * b"\xff"])
def test_a_list_of_dogs_that_cannot_be_read(kennel, content):
    (kennel / "lists" / "train_list.mat").write_bytes(content)
    assert f"{kennel / 'lists' / 'train_list.mat'} cannot be read: " in error_of("dogs", kennel)


@pytest.mark.parametrize(
    ("paths", "labels", "expected"),
    [
        (TRAIN_DOGS, (1, 2), "holds 3 files and 2 labels"),
        (TRAIN_DOGS, (1, 2.5, 1), "entry 2: the label is not a whole number"),
        (TRAIN_DOGS, (1, np.inf, 1), "entry 2: the label is not a whole number"),
        (TRAIN_DOGS, (1, np.nan, 1), "entry 2: the label is not a whole number"),
        (TRAIN_DOGS, (1, 2, 2), "entry 3: "),
        ((*TRAIN_DOGS[:2], "n02085620-Chihuahua/none.jpg"), (1, 2, 1), "entry 3: there is no file "),
        ((*TRAIN_DOGS[:2], TRAIN_DOGS[0]), (1, 2, 1), "entry 3: "),
        ((*TRAIN_DOGS[:2], TEST_DOGS[0]), (1, 2, 2), "test_list.mat, entry 1: "),
    ],
)
def test_every_odd_entry_about_dogs_is_named(kennel, paths, labels, expected):
    write_list(kennel / "lists" / "train_list.mat", paths, labels)
    text = error_of("dogs", kennel)
    assert "_list.mat" in text
    assert expected in text


def test_a_list_of_dogs_with_other_contents(kennel):
    file = kennel / "lists" / "train_list.mat"
    savemat(file, {"labels": np.ones((2, 1))})
    assert "holds no `file_list`" in error_of("dogs", kennel)
    savemat(file, {"file_list": np.ones((2, 1)), "labels": np.ones((2, 1))})
    assert "entry 1: the name of the file is not a text" in error_of("dogs", kennel)
    savemat(file, {"file_list": np.empty((0, 0), object), "labels": np.empty((0, 0))})
    assert "name no training image" in error_of("dogs", kennel)


# Their configs


@pytest.mark.parametrize("name", ["imagenet12", "cub200", "dogs"])
def test_configs_are_the_papers_imagenet_recipe(name):
    files = [os.path.join(ROOT, "configs", f"{file}.yaml") for file in ("base", name)]
    options = collect(["--cfgs", *files]).options
    changed = {
        option: value
        for option, value in options.as_dict().items()
        if value != collect(["--cfgs", files[0]]).options.as_dict()[option] and option != "workers_num"
    }
    assert changed == {
        "dataset": name,
        "size": 224,
        "resize": 256,
        "batch_size": 256,
        "random_horizontal_flip": True,
        "npc_temperature": 0.07,
        "weight_decay": 1e-4,
    }
