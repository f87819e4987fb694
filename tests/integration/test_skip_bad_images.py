"""--skip-bad-images: which files are left out and remembered, and whole runs on a folder with damaged files."""

import logging
import os
import shutil
import stat

import numpy as np
import pytest
import torch
from PIL import Image

import main
from datasets.files import bad_images, cache
from datasets.files import parallel as reading
from datasets.files.bad_images import without_bad_images
from datasets.files.cache import CACHE
from datasets.image_set import ImageSet, Split
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import find_checkpoint
from lib.errors import RunError, UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A temporary folder in place of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    """Twelve training and four test images in two classes; four of the one and one of the other are damaged."""
    random = np.random.RandomState(0)
    for part, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, (66, 70 + number, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / label / f"{number}.jpg")
    train = tmp_path / "data" / "train"
    (train / "a" / "1.jpg").write_bytes((train / "a" / "1.jpg").read_bytes()[:-100])
    (train / "a" / "4.jpg").write_bytes(b"")
    (train / "b" / "0.jpg").write_bytes(b"no image")
    (train / "b" / "5.jpg").unlink()
    (train / "b" / "5.jpg").symlink_to("nowhere")
    (tmp_path / "data" / "test" / "b" / "1.jpg").write_bytes(b"\xff\xd8")
    return tmp_path / "data"


BAD = ["train/a/1.jpg", "train/a/4.jpg", "train/b/0.jpg", "train/b/5.jpg", "test/b/1.jpg"]


def split_of(folder):
    import datasets

    return datasets.load("imagefolder", str(folder), False)


def names(folder, paths):
    return [os.path.relpath(path, folder) for path in paths]


@pytest.fixture
def opened(monkeypatch):
    """The paths that the check opens, when it is done in this process."""
    paths = []
    read = bad_images.read_rgb

    def note(path):
        paths.append(path)
        return read(path)

    monkeypatch.setattr(bad_images, "read_rgb", note)
    return paths


def test_bad_images_are_left_out_of_training_and_test_sets(folder):
    before = split_of(folder)
    split, skipped = without_bad_images(before, 0)
    assert names(folder, skipped) == BAD
    kept = ["train/a/0.jpg", "train/a/2.jpg", "train/a/3.jpg", "train/a/5.jpg"]
    assert names(folder, split.train.source) == [*kept, *(f"train/b/{number}.jpg" for number in (1, 2, 3, 4))]
    assert split.train.labels.tolist() == [0] * 4 + [1] * 4
    assert split.train.classes == before.train.classes
    assert names(folder, split.test.source) == ["test/a/0.jpg", "test/a/1.jpg", "test/b/0.jpg"]
    assert (split.name, split.notes) == (before.name, before.notes)
    assert split.train.fingerprint() != before.train.fingerprint()
    for path in skipped:
        os.unlink(path)
    assert split.train.fingerprint() == split_of(folder).train.fingerprint()


def test_processes_find_the_same(folder, monkeypatch):
    expected = without_bad_images(split_of(folder), 0)[1]
    shutil.rmtree(folder / CACHE)
    monkeypatch.setattr(reading, "_FEW", 0)
    monkeypatch.setattr(reading, "_BLOCK", 5)
    assert without_bad_images(split_of(folder), 2)[1] == expected
    assert without_bad_images(split_of(folder), 2)[1] == expected


def test_a_second_time_only_bad_files_are_opened(folder, opened):
    first, skipped = without_bad_images(split_of(folder), 0)
    assert len(opened) == 16
    opened.clear()
    second, again = without_bad_images(split_of(folder), 0)
    assert sorted(opened) == sorted(skipped) == sorted(again)
    assert list(second.train.source) == list(first.train.source)
    assert sorted(path.name for path in (folder / CACHE).iterdir()) == ["checked-test.npy", "checked-train.npy"]


def test_changed_and_new_files_are_opened_again(folder, opened):
    without_bad_images(split_of(folder), 0)
    opened.clear()
    old, larger, new, mended = (folder / "train" / name for name in ("a/0.jpg", "a/2.jpg", "c/n.jpg", "a/4.jpg"))
    os.utime(old, ns=(1, 1))
    times = larger.stat()
    larger.write_bytes(larger.read_bytes() + b"\0")
    os.utime(larger, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.parent.mkdir()
    shutil.copy(old, new)
    shutil.copy(old, mended)
    split, skipped = without_bad_images(split_of(folder), 0)
    assert set(opened) == {*map(str, (old, larger, new, mended)), *skipped}
    assert names(folder, skipped) == [name for name in BAD if name != "train/a/4.jpg"]
    assert str(mended) in split.train.source


def test_a_good_file_that_goes_bad_is_checked_again(folder):
    without_bad_images(split_of(folder), 0)
    (folder / "train" / "a" / "0.jpg").write_bytes(b"damaged since")
    assert "train/a/0.jpg" in names(folder, without_bad_images(split_of(folder), 0)[1])


def test_another_pillow_release_checks_all_files_again(folder, opened, monkeypatch):
    without_bad_images(split_of(folder), 0)
    opened.clear()
    monkeypatch.setattr(cache.PIL, "__version__", "0.1")
    without_bad_images(split_of(folder), 0)
    assert len(opened) == 16


@pytest.fixture
def read_only(folder):
    """The folder, in which no cache can be written; since root may write anywhere, a file takes the cache's place."""
    if os.geteuid() == 0:
        (folder / CACHE).write_bytes(b"")
    else:
        os.chmod(folder, stat.S_IRUSR | stat.S_IXUSR)
    yield folder
    os.chmod(folder, stat.S_IRWXU)


def test_where_the_data_cannot_be_written_the_users_cache_remembers(read_only, home, opened):
    skipped = without_bad_images(split_of(read_only), 0)[1]
    assert len(list((home / "and-discovery").iterdir())) == 2
    opened.clear()
    assert without_bad_images(split_of(read_only), 0)[1] == skipped
    assert sorted(opened) == sorted(skipped)


def test_where_nothing_can_be_written_every_start_checks(read_only, home, opened):
    home.write_bytes(b"no folder")
    skipped = without_bad_images(split_of(read_only), 0)[1]
    opened.clear()
    assert without_bad_images(split_of(read_only), 0)[1] == skipped
    assert len(opened) == 16


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", "floats", "objects"])
def test_a_damaged_or_foreign_record_is_ignored(folder, opened, content, tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    expected = without_bad_images(split_of(folder), 0)[1]
    for file in (folder / CACHE).iterdir():
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.save(file, np.zeros(3) if content == "floats" else np.array([Planted()], dtype=object))
    opened.clear()
    assert without_bad_images(split_of(folder), 0)[1] == expected
    assert len(opened) == 16
    assert not (tmp_path / "trap").exists()
    opened.clear()
    without_bad_images(split_of(folder), 0)
    assert len(opened) == len(BAD)


def test_an_interrupted_check_resumes(folder, monkeypatch, opened):
    note = bad_images.read_rgb

    def stop(path):
        if path.endswith(os.path.join("b", "2.jpg")):
            raise KeyboardInterrupt
        return note(path)

    with monkeypatch.context() as context:
        context.setattr(bad_images, "read_rgb", stop)
        with pytest.raises(KeyboardInterrupt):
            without_bad_images(split_of(folder), 0)
    opened.clear()
    without_bad_images(split_of(folder), 0)
    assert str(folder / "train" / "a" / "0.jpg") not in opened
    assert str(folder / "train" / "b" / "2.jpg") in opened


def test_a_folder_of_bad_images_only_is_an_error(folder):
    for path in (folder / "test").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no test image can be read; the first: .*test.a.0\.jpg: .*empty"):
        without_bad_images(split_of(folder), 0)


def die(path):
    os.kill(os.getpid(), 9)


def test_a_killed_process_ends_the_check_with_one_line(folder, monkeypatch):
    monkeypatch.setattr(reading, "_FEW", 0)
    monkeypatch.setattr(bad_images, "_reason", die)
    with pytest.raises(RunError, match="a DataLoader worker died.*--workers-num") as error:
        without_bad_images(split_of(folder), 2)
    assert "\n" not in str(error.value)


def test_images_in_memory_are_not_checked():
    split = Split("some", ImageSet(np.zeros((3, 4, 4, 3), np.uint8)), None)
    same, skipped = without_bad_images(split, 0)
    assert same.train is split.train
    assert skipped == ()


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def logged():
    handler = Records()
    bad_images.log.addHandler(handler)
    yield handler.lines
    bad_images.log.removeHandler(handler)


def test_the_first_ten_are_listed_with_their_reasons(folder, logged):
    for number in range(20):
        (folder / "train" / "a" / f"z{number:02}.jpg").write_bytes(b"")
    without_bad_images(split_of(folder), 0)
    levels, lines = zip(*logged)
    assert set(levels) == {"WARNING"}
    assert lines[0] == "--skip-bad-images: 24 of 32 training images cannot be read and are left out:"
    assert lines[1].startswith(f"    {folder / 'train' / 'a' / '1.jpg'}: not readable as an image: ")
    assert lines[11] == "    and 14 more"
    assert lines[12] == "--skip-bad-images: 1 of 4 test images cannot be read and are left out:"
    assert len(lines) == 14
    logged.clear()
    without_bad_images(split_of(folder), 0, report=False)
    assert logged == []


def test_a_long_check_logs_its_progress(folder, logged, monkeypatch):
    monkeypatch.setattr(reading, "LINE_EVERY", 0.0)
    without_bad_images(split_of(folder), 0)
    assert ("WARNING", "--skip-bad-images: checked 12 of 12 training images, 0 s left; this is done once") in logged


# The command


SMALL = ["--size", "16", "--batch-size", "4", "--max-round", "2", "--max-epoch", "1", "--workers-num", "1"]
SMALL += ["--network", "convnet", "--low-dim", "8", "--precision", "fp32", "--gpus", "cpu", "--no-report"]
SMALL += ["--dataset", "imagefolder", "--no-log-tfb"]


def test_a_run_skips_and_resumes_and_without_the_option_it_ends(folder, tmp_path, capsys, caplog):
    arguments = [*SMALL, "--data-root", str(folder), "--sess-dir", str(tmp_path / "s")]
    assert main.main([*arguments, "--session", "strict"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "not readable as an image" in error
    assert any(name in error for name in BAD)

    assert main.main([*arguments, "--session", "lenient", "--skip-bad-images"]) == 0
    assert "8 training, 3 test images" in capsys.readouterr().out
    assert "4 of 12 training images cannot be read and are left out" in caplog.text
    state = checkpoint.load(find_checkpoint(str(tmp_path / "s" / "lenient"), ""))
    assert state["npc"]["memory"].shape == (8, 8)
    assert state["dataset"]["size"] == 8

    # the checkpoint brings the option along, and its images are the same ones
    assert main.main(["--resume", str(tmp_path / "s" / "lenient"), "--max-round", "3"]) == 0
    later = checkpoint.load(find_checkpoint(str(tmp_path / "s" / "lenient"), ""))
    assert (later["round"], later["dataset"]) == (2, state["dataset"])
    capsys.readouterr()
    assert main.main(["--resume", str(tmp_path / "s" / "lenient"), "--test-only"]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main.main(["--resume", str(tmp_path / "s" / "lenient"), "--no-skip-bad-images"]) == 2
    assert "memory bank" in capsys.readouterr().err


def test_without_bad_files_the_option_changes_nothing(folder, tmp_path, caplog):
    for name in BAD:
        (folder / name).unlink()
    arguments = [*SMALL, "--data-root", str(folder), "--sess-dir", str(tmp_path / "s"), "--max-round", "1"]
    assert main.main([*arguments, "--session", "with", "--skip-bad-images"]) == 0
    assert main.main([*arguments, "--session", "without"]) == 0
    assert "left out" not in caplog.text
    one, other = (
        checkpoint.load(find_checkpoint(str(tmp_path / "s" / name), ""))["npc"]["memory"]
        for name in ("with", "without")
    )
    assert torch.equal(one, other)
