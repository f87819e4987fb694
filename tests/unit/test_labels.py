"""Tables of labels as programs and people write them."""

import os

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets.image_set import ImageSet, Split
from datasets.labels import evaluable, select_classes
from lib.errors import UserError

COMPOSED, APART = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def folder(tmp_path):
    """Makes pictures of these names, which may be bytes."""

    def make(*names):
        for name in names:
            path = os.path.join(os.fsencode(tmp_path / "p"), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                Image.new("RGB", (9, 9)).save(file, "PNG")
        return tmp_path / "p"

    return make


def labels(root, content):
    table = root.parent / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    split = datasets.load("photos", str(root), False, str(table))
    known = {os.path.relpath(path, root): label for path, label in zip(split.train.paths, split.train.labels)}
    return {name: split.train.classes[label] for name, label in known.items() if label >= 0}


@pytest.mark.parametrize("written", [COMPOSED, APART])
def test_names_and_labels_are_compared_in_one_unicode_form(folder, written):
    root = folder(f"{APART}/1.png", f"{COMPOSED}2.png", "x.png")
    found = labels(root, f"{written}/1.png,{COMPOSED}\n{written}2.png,{APART}\nx.png,x\n")
    assert found == {f"{APART}/1.png": COMPOSED, f"{COMPOSED}2.png": COMPOSED, "x.png": "x"}


def test_two_names_that_look_alike_are_told_apart_by_their_bytes(folder):
    root = folder(f"{APART}.png", f"{COMPOSED}.png")
    assert labels(root, f"{APART}.png,x\n{COMPOSED}.png,y\n") == {f"{APART}.png": "x", f"{COMPOSED}.png": "y"}
    root = folder("o\u0302\u0323.png", "\u1ed9.png", "z.png")
    with pytest.raises(UserError, match="line 2: .*matches 2 pictures whose names look alike"):
        labels(root, "z.png,x\n\u00f4\u0323.png,y\n")


def test_folder_labels_in_other_unicode_forms_are_one_label(folder):
    root = folder(f"{APART}/1.png", f"{COMPOSED}/2.png", "x/1.png")
    assert datasets.load("photos", str(root), False, "folders").train.classes == (COMPOSED, "x")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("a,b.png;cat\nc.png;dog\n", {"a,b.png": "cat", "c.png": "dog"}),
        ("c.png;dog, or cat\na,b.png;cat\n", {"a,b.png": "cat", "c.png": "dog, or cat"}),
        ('"a,b.png",cat; dog\nc.png,dog\n', {"a,b.png": "cat; dog", "c.png": "dog"}),
        ("a,b.png\tcat; dog\nc.png\tdog\n", {"a,b.png": "cat; dog", "c.png": "dog"}),
        ('" d.png",cat\nc.png,dog\n', {" d.png": "cat", "c.png": "dog"}),
        (" d.png,cat\nc.png,dog\n", {" d.png": "cat", "c.png": "dog"}),
        ('"a,b.png", "cat"\n"c.png" , dog\n', {"a,b.png": "cat", "c.png": "dog"}),
        (' "a,b.png", "cat"\n" d.png", "dog"\n', {"a,b.png": "cat", " d.png": "dog"}),
        ("d.png,cat\ne\\f.png,dog\n", {" d.png": "cat", "e/f.png": "dog"}),
        ("file;kind\n'c.png;dog\nc.png;cat\nd.png;dog", None),
    ],
)
def test_separators_quotation_marks_and_spaces(folder, table, expected):
    root = folder("a,b.png", "c.png", " d.png", "e/f.png")
    if expected is None:
        with pytest.raises(UserError, match="line 2: 'c.png is not a picture below"):
            labels(root, table)
    else:
        assert labels(root, table) == expected


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac-roman", "cp1251", "shift-jis", "gbk"])
def test_a_table_in_another_encoding_is_an_error_with_its_line(folder, encoding):
    word = {"cp1251": "\u043a\u043e\u0442", "shift-jis": "\u732b", "gbk": "\u72d7"}.get(encoding, COMPOSED)
    root = folder("a.png", "b.png", f"{word}.png")
    with pytest.raises(UserError, match=r"t.csv, line 2: the label .* is not UTF-8 text; save it as CSV in UTF-8"):
        labels(root, f"a.png,x\nb.png,{word}\n".encode(encoding))
    with pytest.raises(UserError, match=r"t.csv, line 1: .* \(its name holds bytes that are not UTF-8; save it as CSV"):
        labels(root, f"{word}.png,x\nb.png,y\n".encode(encoding))


def test_names_of_files_that_are_no_utf_8_are_found_by_their_bytes(folder):
    root = folder(b"caf\xe9.png", "a.png")
    found = labels(root, b"caf\xe9.png,x\na.png,y\n")
    assert {os.fsencode(name): label for name, label in found.items()} == {b"caf\xe9.png": "x", b"a.png": "y"}


@pytest.mark.parametrize("head", ["", "file;kind\n", "sep=;\n", "SEP=;\r\nfile;kind\n", "\n ; \nfile;kind\n"])
def test_the_heading_is_the_first_line_that_is_not_empty(folder, head):
    root, rows = folder("a,b.png", "c.png"), f"{head}a,b.png;cat\nc.png;dog\n"
    assert labels(root, rows) == {"a,b.png": "cat", "c.png": "dog"}
    with pytest.raises(UserError, match=f"line {rows.count(chr(10)) + 1}: kind is not a picture below"):
        labels(root, f"{rows}kind;x\n")


def test_a_pipe_that_was_read_before_is_named(folder):
    """For instance when a run resumes whose labels came from a shell's <(...)."""
    root = folder("a.png", "b.png")
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(UserError, match=rf"--labels /dev/fd/{reading}: it is empty; a pipe can be read only once: "):
        datasets.load("photos", str(root), False, f"/dev/fd/{reading}")
    os.close(reading)
    with pytest.raises(UserError, match=rf"--labels /dev/fd/{reading}: cannot be read: .*; a pipe can be read only "):
        datasets.load("photos", str(root), False, f"/dev/fd/{reading}")
    with pytest.raises(UserError, match="t.csv: it is empty$"):
        labels(root, "\n")


def test_images_that_are_not_files_take_no_labels():
    with pytest.raises(UserError, match="--labels folders: the images of digits are not files; leave out --labels"):
        datasets.load("digits", None, False, "folders")


def numbered(*labels):
    """Images of the classes a, b and c."""
    return ImageSet(np.zeros((len(labels), 8, 8, 3), np.uint8), np.array(labels, dtype=np.int64), ("a", "b", "c"))


def test_chosen_classes_without_test_images_leave_no_test_set():
    split = select_classes(Split("s", numbered(0, 1, 2, 2), numbered(0, 0)), ["b", "c"])
    assert (split.train.labels.tolist(), split.test) == ([0, 1, 1], None)
    assert split.notes == ("--classes b c: no test image is of these classes; there is no test set",)
    with pytest.raises(UserError, match="s has no training image of these classes"):
        select_classes(Split("s", numbered(0, 1), numbered(2)), ["c"])


def test_images_of_which_none_is_labelled_have_no_labels():
    train, test, lines = evaluable(numbered(-1, -1), numbered(-1))
    assert (train.labels, test.labels, train.classes) == (None, None, ())
    assert lines == ("none of the images has a label, so no accuracy is computed",)
