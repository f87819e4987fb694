"""The files that count as pictures, in folders with classes and without; all skipped ones are named."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets.files import found_files
from datasets.files.found_files import scan_folder
from datasets.image_set import UNLABELLED, ImageSet, Split
from datasets.labels import evaluable, select_classes
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.errors import UserError


def picture(path, format=None, colour=(9, 99, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (70, 80), colour).save(path, format)


def text(path, content="hello"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def names(root, paths):
    return [os.path.relpath(path, root) for path in paths]


def load(root, kind="imagefolder"):
    return datasets.load(kind, str(root), False)


@pytest.fixture
def classes(tmp_path):
    """Two classes to learn from."""
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        picture(tmp_path / "train" / name)
    return tmp_path


MORE = {"3.jfif": "JPEG", "4.tga": "TGA", "5.JP2": "JPEG2000", "6.ico": "ICO", "7.pcx": "PCX", "8.jpe": "JPEG"}


@pytest.mark.parametrize("kind", ["imagefolder", "photos"])
def test_every_format_that_pillow_opens_counts_as_a_picture(classes, kind):
    for name, format in MORE.items():
        picture(classes / "train" / "a" / name, format)
    split = load(classes if kind == "imagefolder" else classes / "train", kind)
    expected = ["a/1.jpg", "a/2.jpg", *(f"a/{name}" for name in MORE), "b/1.jpg", "b/2.jpg"]
    assert names(classes / "train", split.train.paths) == expected
    assert split.notes == ()
    assert all(split.train.read(row).size[0] > 0 for row in range(len(expected)))


def test_skipped_files_are_counted_and_named_in_every_kind_of_folder(classes):
    for name in ("a/3.heic", "a/4.CR2", "b/notes.txt", "b/film.mpg", "b/Thumbs.db", "b/noname"):
        text(classes / "train" / name)
    for name in ("@eaDir", "$RECYCLE.BIN", "#recycle", ".thumbnails", "__MACOSX", "lost+found", ".Trash-1000"):
        picture(classes / "train" / "a" / name / "x.jpg")
    split = load(classes)
    assert len(split.train) == 4
    assert split.notes == (
        "skipped in train: 1 .heic, 1 .cr2 (not readable here; convert them to JPEG to use them)",
        "skipped in train: 1 .mpg, 1 nameless, 1 .txt (not named like pictures)",
        "skipped in train: 1 #recycle, 1 $RECYCLE.BIN, 1 .Trash-1000, 1 .thumbnails, 1 @eaDir, 1 __MACOSX and 1 "
        "others (made by operating systems)",
    )
    photos = load(classes / "train", "photos")
    assert [note.replace(":", " in train:", 1) for note in photos.notes] == list(split.notes)


def test_system_folders_are_no_classes(classes):
    for name in ("@eaDir", "$Recycle.Bin", "System Volume Information", "lost+found", "__MACOSX"):
        picture(classes / "train" / name / "x.jpg")
    assert load(classes).train.classes == ("a", "b")


@pytest.mark.parametrize("name", ["1.heic", "1.cr2", "film.mov", "noname", "x.npy"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_folder_without_pictures_is_an_error(classes, name, part):
    picture(classes / "test" / "a" / "1.jpg")
    text(classes / part / "c" / "deep" / name)
    with pytest.raises(UserError) as error:
        load(classes)
    ending = os.path.splitext(name)[1] or "nameless"
    assert f"{classes / part / 'c'} is a class folder without a picture that can be read here" in str(error.value)
    assert f"what it holds: 1 {ending}; convert" in str(error.value)


def test_a_folder_of_annotations_is_no_class(tmp_path):
    """A layout of YOLO; with one class there are no labels to evaluate by."""
    for number in range(3):
        picture(tmp_path / "train" / "images" / f"{number}.jpg")
        text(tmp_path / "train" / "labels" / f"{number}.txt")
        picture(tmp_path / "valid" / "images" / f"{number}.jpg")
    (tmp_path / "train" / "empty").mkdir()
    split = load(tmp_path)
    assert len(split.test) == 3
    assert split.notes == (
        "not classes, since they hold no pictures: empty/, labels/ in train",
        "skipped in train: 3 .txt (not named like pictures)",
        "test images: those in valid/",
    )
    pipeline = Pipeline(split, Options(augment_on="workers", workers_num=0), torch.device("cpu"))
    assert (pipeline.train.labels, pipeline.test.labels, pipeline.train.classes) == (None, None, ("images",))
    assert pipeline.cautions == ("one class only (images): every accuracy would be 100 %, so none is computed",)


@pytest.mark.parametrize(
    ("held_out", "used"),
    [
        (["valid"], "valid"),
        (["validation"], "validation"),
        (["val", "validation"], "val"),
        (["test", "val"], "test"),
        (["dev"], None),
    ],
)
def test_held_out_folders_are_used_or_named(classes, held_out, used):
    for name in held_out:
        picture(classes / name / "a" / f"{name}.jpg")
    split = load(classes)
    assert (split.test is None) == (used is None)
    if used is not None:
        assert names(classes, split.test.paths) == [f"{used}/a/{used}.jpg"]
    others = [name for name in held_out if name != used]
    assert ("not used: " + ", ".join(f"{name}/" for name in others) + " beside train/" in split.notes) == bool(others)


def test_without_train_the_message_names_what_is_there(tmp_path):
    picture(tmp_path / "Training" / "a" / "1.jpg")
    with pytest.raises(UserError, match=r"there is no folder .*/train \(.* holds Training/\); point --data-root"):
        load(tmp_path)


@pytest.fixture
def forbidden(monkeypatch):
    """Makes folders called `private` inaccessible even for root, who may enter every folder."""
    scandir = os.scandir

    def scan(path):
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(found_files.os, "scandir", scan)


def test_a_folder_without_permission_is_skipped_and_named(classes, forbidden):
    picture(classes / "train" / "a" / "private" / "x.jpg")
    closed = classes / "train" / "a" / "private"
    line = f"{closed} (may not be entered: permission denied)"
    assert load(classes).notes == (f"skipped in train: {line}",)
    assert load(classes / "train", "photos").notes == (f"skipped: {line}",)
    assert scan_folder(str(classes)).closed == [str(closed)]


def test_a_class_or_root_folder_without_permission_is_an_error_that_names_it(classes, forbidden):
    picture(classes / "train" / "private" / "x.jpg")
    with pytest.raises(UserError, match=r"train/private cannot be read: Permission denied"):
        load(classes)
    with pytest.raises(UserError, match=r"train/private cannot be read: Permission denied"):
        load(classes / "train" / "private", "photos")


def test_class_names_in_other_unicode_forms_are_equal(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    picture(tmp_path / "train" / apart / "1.jpg")
    picture(tmp_path / "train" / "x" / "1.jpg")
    picture(tmp_path / "test" / composed / "2.jpg")
    split = load(tmp_path)
    assert (split.train.classes, split.test.classes) == ((apart, "x"), (apart, "x"))
    assert split.test.labels.tolist() == [0]
    assert select_classes(split, [composed]).train.classes == (apart,)
    picture(tmp_path / "train" / composed / "3.jpg")
    split = load(tmp_path)
    assert (split.train.classes, split.train.labels.tolist()) == ((apart, "x"), [0, 0, 1])
    assert split.notes == (f"two folders in train are called {composed} in different bytes: one class",)


def labelled(labels, classes):
    return ImageSet(np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels), tuple(classes))


@pytest.mark.parametrize(
    ("words", "kept", "note"),
    [
        ("0 1 2", "123", "--classes 0 1 2: taken as numbers, from 0, for no class is called 0: 1, 2, 3"),
        ("1 2", "12", "--classes 1 2: taken as names; as numbers, from 0, they would be 2, 3"),
        ("3 1", "13", None),
        ("0", "1", None),
    ],
)
def test_classes_option_takes_all_names_or_all_numbers(words, kept, note):
    split = Split("x", labelled([0, 1, 2], "123"), None)
    chosen = select_classes(split, words.split())
    assert "".join(chosen.train.classes) == kept
    assert chosen.notes == (() if note is None else (note,))


def test_classes_option_refuses_names_mixed_with_numbers():
    split = Split("x", labelled([0, 1, 2], ("1", "cat", "dog")), None)
    with pytest.raises(UserError, match="--classes 2: x has no such class beside the other words; name all or number"):
        select_classes(split, ["cat", "2"])
    with pytest.raises(UserError, match="--classes cow: x has no such class; name all or number all from 0 to 2: 1, "):
        select_classes(split, ["cat", "cow"])
    digits = Split("x", labelled(range(10), "0123456789"), None)
    assert select_classes(digits, ["3", "5"]).notes == ()


def test_test_images_of_classes_without_training_images_are_counted():
    train, test = labelled([0, 0, 1, 1], "abc"), labelled([0, 2, 2], "abc")
    (line,) = evaluable(train, test)[2]
    assert line.startswith("2 test images cannot be recognised: the training images hold no other")
    assert line.endswith(": c")
    (line,) = evaluable(labelled([0, 0, 1, UNLABELLED], "ab"), None)[2]
    assert line.startswith("1 labelled images cannot be recognised")
    assert evaluable(train, labelled([0, 1], "abc"))[2] == ()
    assert evaluable(labelled([1, 1], "ab"), labelled([0], "ab"))[0].labels.tolist() == [1, 1]
    one = evaluable(labelled([1, 1], "ab"), labelled([1], "ab"))
    assert [(images.labels, images.classes) for images in one[:2]] == [(None, ("b",))] * 2
