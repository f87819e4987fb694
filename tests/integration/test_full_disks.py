"""Disks that are full or read-only: small file systems in memory, which only root can mount."""

import logging
import os
import shutil

import numpy as np
import pytest

from lib.checkpoint import io as checkpoint
from lib.logger import console as journal
from lib.logger.tensorboard import SPRITE_SIDE, EventFile, TensorBoardWriter
from main import main
from tests.helpers.disks import mount, small_disk
from tests.helpers.runs import TINY, call, checkpoints, error_line, start, wait_for

KIB = 2**10


def test_a_disk_full_at_the_second_checkpoint(tmp_path, capsys):
    """The disk holds one checkpoint of 480 KB, not two."""
    with small_disk(tmp_path / "disk", 750 * KIB) as disk:
        status, _, err = call(*TINY, "--sess-dir", disk, "--session", "s")
        assert status == 1
        message = error_line(err)
        assert "could not be written: No space left on device; the one before it is unchanged" in message
        assert os.listdir(disk / "s" / "checkpoint") == ["0000-00000.ckpt"]
        assert checkpoint.load(disk / "s" / "checkpoint" / "0000-00000.ckpt")["step"] == 2
        shutil.copytree(disk / "s", tmp_path / "s")
    assert main(["--resume", str(tmp_path / "s"), "--max-round", "1"]) == 0  # on a larger disk it goes on


def test_a_disk_full_from_the_start(tmp_path, capsys):
    with small_disk(tmp_path / "disk", 4096) as disk:
        (disk / "filler").write_bytes(b"x" * 4096)
        assert main([*TINY, "--sess-dir", str(disk), "--session", "s"]) == 1
        assert "No space left on device" in error_line(capsys.readouterr().err)


def test_a_disk_that_becomes_read_only(tmp_path):
    with small_disk(tmp_path / "disk", 30_000 * KIB) as disk:
        process = start(*TINY, "--no-log-file", "--sess-dir", disk, "--session", "s", "--max-epoch", "500")
        wait_for(lambda: checkpoints(disk / "s"), process)
        wait_for(lambda: mount("-o", "remount,ro", disk), process)  # between two writes
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Read-only file system" in error_line(err)
        for name in checkpoints(disk / "s"):
            checkpoint.load(disk / "s" / "checkpoint" / name)


def test_a_session_folder_that_is_removed_during_the_run(tmp_path):
    process = start(*TINY, "--sess-dir", tmp_path, "--session", "s", "--max-epoch", "500")
    wait_for(lambda: checkpoints(tmp_path / "s"), process)
    os.rename(tmp_path / "s", tmp_path / "away")  # in one step; rm -r might lose a race with a new file
    shutil.rmtree(tmp_path / "away")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is gone" in error_line(err)
    assert not (tmp_path / "s").exists()


def test_standard_output_on_a_full_disk_does_not_end_the_run(tmp_path):
    """Standard output goes to a full disk; so does the log in the next test."""
    with open("/dev/full", "w") as full:
        status, _, err = call(*TINY, "--max-round", "1", "--sess-dir", tmp_path, "--session", "s", stdout=full)
    assert status in (0, 1)
    assert "Traceback" not in err
    assert "0000-00000.ckpt" in checkpoints(tmp_path / "s")
    assert checkpoint.load(tmp_path / "s" / "checkpoint" / "0000-00000.ckpt")["epoch"] == 2


def test_a_log_on_a_full_disk_stops_with_a_warning(capsys):
    log = journal.open_log("/dev/full", brief=False)
    for number in range(3):
        log.info("line %d", number)
    journal.close_log()
    said = capsys.readouterr()
    assert said.err == "warning: /dev/full: No space left on device; the log ends here\n"
    assert said.out == "line 0\nline 1\nline 2\n"


def test_tensorboard_files_on_a_full_disk_stop_with_a_warning(tmp_path):
    logged = []

    class Listener(logging.Handler):
        def emit(self, record):
            logged.append(record.getMessage())

    listener = Listener()
    logging.getLogger(journal.LOGGER).addHandler(listener)
    try:
        with small_disk(tmp_path / "disk", 16384) as disk:
            writer = EventFile(disk / "board")
            for step in range(3000):
                writer.add_scalars(step, {"Train/Loss": 1.0})
            writer.flush()
            writer.close()
    finally:
        logging.getLogger(journal.LOGGER).removeHandler(listener)
    assert len(logged) == 1
    assert "can no longer be written: No space left on device; the run continues without" in logged[0]


def test_a_write_beyond_the_file_size_limit_leaves_the_previous_file(tmp_path):
    """RLIMIT_FSIZE, which needs no root: the disk refuses in the middle of torch's writing."""
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom lib.errors import RunError\n"
        "from lib.checkpoint import io as checkpoint\n"
        "from tests.helpers.checkpoints import complete\npath = Path(sys.argv[1])\n"
        "checkpoint.save(complete(), path)\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n    checkpoint.save(complete(net={'w': torch.zeros(1_000_000)}), path)\n"
        "except RunError as error:\n    print(error)\n"
        "print(checkpoint.load(path)['net']['weight'].tolist())\n"
    )
    status, out, err = call(tmp_path / "x.ckpt", program=("-c", code))
    assert status == 0, err
    message, weights = out.splitlines()
    assert "could not be written: File too large; the one before it is unchanged" in message
    assert weights == "[0.0, 1.0, 2.0]"
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_a_projector_on_a_full_disk_does_not_end_the_run(tmp_path, capsys):
    board = TensorBoardWriter(tmp_path, 2)
    journal.open_log(None, brief=False)
    with small_disk(tmp_path / "run", 65536):
        squares = np.random.RandomState(0).randint(0, 255, (100, SPRITE_SIDE, SPRITE_SIDE, 3)).astype(np.uint8)
        board.thumbnails(squares)
        board.embeddings("a", np.zeros((100, 4)), {"image": ["x"] * 100})
    journal.close_log()
    said = capsys.readouterr().out
    assert said.count("the projector's files can no longer be written: [Errno 28] No space left on device") == 1


@pytest.mark.parametrize("free", [40, 250, 530])
def test_an_export_on_a_full_disk_leaves_nothing(tmp_path, capsys, free):
    """The network takes 480 KB, and 480 more as ONNX."""
    assert main([*TINY, "--max-round", "1", "--max-epoch", "1", "--sess-dir", str(tmp_path), "--session", "s"]) == 0
    with small_disk(tmp_path / "disk", free * KIB) as disk:
        assert main(["--resume", str(tmp_path / "s"), "--export", str(disk / "e"), "--num-clusters", "2"]) == 1
        message = error_line(capsys.readouterr().err)
        assert f"--export {disk / 'e'} could not be written: " in message
        assert "nothing was left there" in message
        assert os.listdir(disk) == []
