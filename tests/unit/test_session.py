"""Session folders, checkpoints, metrics, tables, the log and progress."""

import errno
import io
import json
import logging
import os
import pickle
import threading
import zipfile

import pytest
import torch

from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import checkpoint_file, find_checkpoint, newest_checkpoint
from lib.errors import RunError, UserError
from lib.logger import console as journal
from lib.logger.console import _fitted, duration
from lib.runtime.atomic import append_line
from lib.session import folder
from lib.session.folder import SessionFolder
from lib.session.metrics import History, Metrics, read_lines, sizes
from tests.helpers.checkpoints import Planted, complete, restricted_load


def test_two_sessions_of_one_second_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.time, "strftime", lambda pattern: "20260101-120000")
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(SessionFolder.create(str(tmp_path), None))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(s.name for s in made) == ["20260101-120000", *(f"20260101-120000-{i}" for i in range(2, 9))]


def test_a_taken_name_is_refused(tmp_path):
    SessionFolder.create(str(tmp_path), "mine")
    with pytest.raises(UserError, match=r"session .*mine exists; resume it with --resume"):
        SessionFolder.create(str(tmp_path), "mine")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --sess-dir"):
        SessionFolder.create(str(tmp_path / "file"), None)


def test_names_of_checkpoints(tmp_path):
    session = SessionFolder(tmp_path)
    assert checkpoint_file(session.checkpoints, 3, 1077).name == "0003-01077.ckpt"
    assert checkpoint_file(session.checkpoints, 4, 1281167, "-best").name == "0004-1281167-best.ckpt"


def test_the_newest_checkpoint_is_that_of_the_latest_round_and_not_a_best_one(tmp_path):
    session = SessionFolder.create(str(tmp_path), "a")
    with pytest.raises(UserError, match="no checkpoint in"):
        newest_checkpoint(session.path)
    for name in ("0001-00010.ckpt", "0000-00000.ckpt", "0001-00010-best.ckpt", "0002-00020.ckpt.7.tmp"):
        (session.checkpoints / name).write_text("")
    assert newest_checkpoint(session.path).name == "0001-00010.ckpt"
    assert find_checkpoint(str(session.path), "elsewhere").name == "0001-00010.ckpt"


def test_last_is_the_session_written_to_last(tmp_path):
    for name, age in (("b", 100), ("a", 200), ("c", 50)):
        file = checkpoint_file(SessionFolder.create(str(tmp_path), name).checkpoints, 0, 0)
        file.write_text("")
        os.utime(file, (1e9 + age, 1e9 + age))
    assert find_checkpoint("last", str(tmp_path)).parts[-3] == "a"
    with pytest.raises(UserError, match="no session in .* has a checkpoint"):
        find_checkpoint("last", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no such file or session folder"):
        find_checkpoint(str(tmp_path / "nothing.ckpt"), str(tmp_path))


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "x.ckpt"
    checkpoint.save(complete(), path)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["net"]["weight"], torch.arange(3.0))
    assert loaded["options"] == {"scale": [0.2, 1.0], "data_root": None}
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    checkpoint.save(complete(), path)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"could not be written: .*No space left.*; the one before it is unchanged"):
        checkpoint.save(complete(epoch=2), path)
    monkeypatch.undo()
    assert checkpoint.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("way", ["torch's own", "ours for torch before 1.13"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, way):
    path, trap = tmp_path / "x.ckpt", tmp_path / "trap"
    torch.save(complete(extra=Planted(trap)), path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path) if way == "torch's own" else restricted_load(path, monkeypatch)
    assert not trap.exists()
    path.write_bytes(pickle.dumps(Planted(trap)))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path) if way == "torch's own" else restricted_load(path, monkeypatch)
    assert not trap.exists()


def test_the_restricted_unpickler_reads_our_checkpoints(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimizer.step()
    state = complete(
        optimizer=optimizer.state_dict(), net=torch.nn.BatchNorm1d(3).state_dict(), random=torch.get_rng_state()
    )
    checkpoint.save(state, path)
    loaded = restricted_load(path, monkeypatch)
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert torch.equal(loaded["random"], state["random"])


@pytest.mark.parametrize("keep", [0, 1, 100, 600])
def test_a_checkpoint_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "x.ckpt"
    checkpoint.save(complete(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"checkpoint .*x\.ckpt cannot be read \(.+\); it is damaged or not a checkpoint"
    ):
        checkpoint.load(path)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_text("hello\n")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="cannot be read|checksum"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list, not a run"):
        checkpoint.load(path)
    torch.save({"net": {}}, path)
    with pytest.raises(UserError, match="it has no optimizer, npc, ANs_discovery, epoch, round, options"):
        checkpoint.load(path)
    torch.save(complete(format=99), path)
    with pytest.raises(UserError, match="layout 99; this version reads up to 2"):
        checkpoint.load(path)


@pytest.mark.parametrize("cut", ["", '{"command": "cut', "x" * 10_000])
@pytest.mark.parametrize("before", ["", '{"a": 1}\n', json.dumps({"long": "y" * 9_000}) + "\n"])
def test_a_line_cut_off_by_a_full_disk_does_not_spoil_the_next(tmp_path, before, cut):
    file = tmp_path / "starts.jsonl"
    file.write_text(before + cut)
    append_line(file, '{"b": 2}')
    assert file.read_text() == before + '{"b": 2}\n'
    assert read_lines(file)[-1] == {"b": 2}


def test_metrics_rewind_and_keep_the_superseded_lines(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for place in ((0, 1), (0, 2), (1, 1), (1, 2)):
        metrics.append({"round": place[0], "epoch": place[1]})
    with open(metrics.path, "a") as file:
        file.write('{"round": 1, "ep')  # cut off by a kill
    metrics.rewind(1, 1)
    metrics.append({"round": 1, "epoch": 2, "again": True})
    assert [(r["round"], r["epoch"]) for r in map(json.loads, metrics.path.read_text().splitlines())] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in superseded] == [{"round": 1, "epoch": 2}]


def test_brief_shows_results_and_warnings_only(capsys):
    log = journal.open_log(None, brief=True)
    log.info("an epoch")
    log.info("a round", extra={"result": True})
    log.warning("a warning")
    journal.close_log()
    assert capsys.readouterr().out == "a round\na warning\n"


@pytest.mark.parametrize("silent", [True, False])
def test_closing_the_log_restores_the_logger(tmp_path, silent):
    logger = logging.getLogger(journal.LOGGER)
    before = logger.level, logger.propagate, list(logger.handlers)
    journal.open_log(tmp_path / "log.txt", brief=False, silent=silent)
    assert (logger.level, logger.propagate) != before[:2]
    journal.close_log()
    assert (logger.level, logger.propagate, logger.handlers) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (420, "7 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_bar_is_shown_on_a_terminal_only(monkeypatch):
    from lib.logger.console import Progress

    plain = Progress(100, 0, quiet=False)
    assert plain._bar is None

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    shown = Progress(100, 50, quiet=False)
    shown.label("round 0/4 epoch 1/2")
    shown.advance(25, 3.14159)
    shown.close()
    assert "round 0/4 epoch 1/2" in screen.getvalue()
    assert Progress(100, 0, quiet=True)._bar is None


def test_cluster_sizes_in_words():
    assert sizes([40, 30, 20]) == "3 (20 to 40)"
    assert sizes([90]) == "1 (all 90)"


def test_tables_fit_a_narrow_terminal():
    history = History()
    history.start_round(0, 0, None)
    found = {"entropy": 2.0, "neighbour_cosine": 0.9, "clusters": [9, 3]}
    history.current.add({"loss": 1.5, "knn_top1": None, "seconds": 1.0, **found})
    for width in (40, 60, 80, 120):
        assert max(map(len, history.diagnostics_table(width).splitlines())) <= max(width, 40)
        assert max(map(len, history.table({}, width).splitlines())) <= max(width, 40)
    assert "| round | anchors |  loss | entropy | anchors' |" in history.diagnostics_table()


def test_long_lines_are_broken_on_terminals_only(monkeypatch):
    text = "options   " + ", ".join(f"name_{number}=value" for number in range(9))
    assert _fitted(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    lines = _fitted(text).split("\n")
    assert max(map(len, lines)) <= 50
    assert all(line.startswith(" " * 10 + "name_") for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == " ".join(text.split()).replace("options ", "options   ")
    command = "command   python3 main.py " + "--cfgs configs/base.yaml " * 4
    assert _fitted(command) == command
