"""Runs that are killed, asked to stop, or share a session: compared bit for bit with an undisturbed run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.same_run import differences
from lib.checkpoint import io as checkpoint
from lib.errors import RunError, UserError
from lib.session.folder import SessionFolder
from lib.session.lock import SessionLock
from main import main
from tests.helpers.disks import small_disk
from tests.helpers.processes import start_run, worker
from tests.helpers.runs import ROOT, TINY, WORKERS, call, checkpoints, error_line, killed_after, start, wait_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, with the requested way of training."""
    base = tmp_path_factory.mktemp("whole")

    def session(way):
        if not (base / way).exists():
            status, _, err = call(*TINY, *WAYS[way], "--sess-dir", base, "--session", way)
            assert status == 0, err
        return base / way

    return session


WAYS = {"plain": [], "workers": WORKERS}


def resume(*arguments):
    status, out, err = call("--resume", *arguments)
    assert status == 0, err
    return out


def test_a_run_killed_within_an_epoch_resumes_to_the_same_result(whole, tmp_path):
    session = tmp_path / "s"
    killed_after("-e0001-s000002", *TINY, "--sess-dir", tmp_path, "--session", "s")
    saved = checkpoint.load(session / "checkpoint" / checkpoints(session)[-1])
    assert saved["step"] > 0
    out = resume("last", "--sess-dir", tmp_path, "--no-brief")
    assert re.search(r"resumed .*: round 0, 1 epochs and \d steps completed", out)
    assert differences(whole("plain"), session) == []
    # what is kept: last and best of each round, and one before the last
    assert len(checkpoints(session)) == 5


def test_a_round_begins_with_its_first_step_after_a_resumption_with_fewer_epochs(tmp_path, capsys):
    """From a checkpoint within the second epoch, which is then left out."""
    every = ["--save-every", "1", "--keep", "99", "--sess-dir", str(tmp_path)]
    assert main([*TINY, *every, "--session", "s"]) == 0
    source = next((tmp_path / "s" / "checkpoint").glob("0000-*-e0001-s000003.ckpt"))
    assert main(["--resume", str(source), "--restart", "--max-epoch", "1", *every, "--session", "t"]) == 0
    steps = [path.name[-12:-5] for path in (tmp_path / "t" / "checkpoint").glob("0001-*-e0000-*.ckpt")]
    assert sorted(steps) == ["s000001", "s000002", "s000003", "s000004"]


@pytest.mark.parametrize(
    ("number", "way"),
    [(signal.SIGINT, "plain"), pytest.param(signal.SIGTERM, "workers", marks=pytest.mark.slow)],
)
def test_a_signal_stops_at_the_next_step_and_saves(whole, tmp_path, number, way):
    """The signal goes to the whole process group, DataLoader workers included, as a terminal or a cluster sends it."""
    process = start(*TINY, *WAYS[way], "--sess-dir", tmp_path, "--session", "s s", start_new_session=True)
    session = tmp_path / "s s"
    wait_for(lambda: checkpoints(session), process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    said = [line for line in err.splitlines() if line]
    assert len(said) == 2, err
    assert said[0] == f"{number.name}: stopping after this step and saving; a second signal stops at once"
    place = r"stopped in round \d after \d epochs and \d steps"
    last = re.fullmatch(rf"{number.name}: {place}, saved as (.*\.ckpt); (.*)", said[1])
    assert last[2] == f"resume with: python3 main.py --resume '{session}'"
    assert checkpoint.load(last[1])["session"] == "s s"
    assert not (session / "session.lock").exists()
    resume(session)
    assert differences(whole(way), session) == []


def test_a_second_signal_stops_at_once(tmp_path):
    long = ["--network", "resnet18", "--limit-train", "1400", "--save-every", "null"]  # an epoch of seconds
    process = start(*TINY, *long, "--sess-dir", tmp_path, "--session", "s")
    wait_for(lambda: (tmp_path / "s" / "log.txt").exists(), process)
    wait_for(lambda: "session " in (tmp_path / "s" / "log.txt").read_text(), process)
    time.sleep(1)
    process.send_signal(signal.SIGSTOP)  # so that it cannot have ended after the first of the two
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=20)
    # either one was delivered first; the other then ended the process
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM)
    assert checkpoints(tmp_path / "s") == []


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path, fresh):
    process = start_run(2, [*TINY, "--max-epoch", "50", "--sess-dir", tmp_path, "--session", "s"], fresh=fresh)
    session = tmp_path / "s"
    wait_for(lambda: checkpoints(session), process)
    os.kill(worker(process.pid, rank=1), signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGTERM: stopped in round" in err, err
    assert "resume with: python3 main.py --resume" in err
    assert "rank 0" not in [line for line in err.splitlines() if line.startswith("error:")]
    saved = checkpoint.load(next(path for path in [session / "checkpoint" / name for name in checkpoints(session)]))
    assert saved["epoch"] + saved["step"] > 0
    assert not (session / "session.lock").exists()
    resume(session, "--max-epoch", saved["epoch"] + 1, "--max-round", "1")


# --- one run at a time


def test_a_second_run_is_refused_and_a_dead_one_is_taken_over(whole, tmp_path, capsys):
    session = tmp_path / "plain"
    shutil.copytree(whole("plain"), session)
    process = start("--resume", session, "--max-round", "50")
    lock = session / "session.lock"
    wait_for(lock.exists, process)
    wait_for(lambda: len(checkpoints(session)) > 5, process)
    assert main(["--resume", str(session)]) == 2
    message = error_line(capsys.readouterr().err)
    assert f"is in use by process {process.pid} on this host ({socket.gethostname()})" in message
    process.kill()
    process.communicate()
    assert json.loads(lock.read_text())["pid"] == process.pid
    assert main(["--resume", str(session), "--max-round", "2"]) == 0
    assert not lock.exists()


def stale(**changes):
    """The text of a lock of this process, with changes."""
    lock = SessionLock.__new__(SessionLock)
    SessionLock.__init__(lock, ROOT)
    return json.dumps({**lock._own, **changes})


def test_which_locks_are_respected(tmp_path):
    file = tmp_path / "session.lock"
    other = SessionLock(tmp_path)
    file.write_text(stale())  # ours, alive
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on this host"):
        other.acquire()
    file.write_text(stale(host="elsewhere"))
    with pytest.raises(UserError, match="on host elsewhere since .*; if that run is gone, delete .*session.lock"):
        other.acquire()
    file.write_text(stale(process="another start of the machine 5"))  # the number was given to another process
    other.acquire()
    assert json.loads(file.read_text())["pid"] == os.getpid()
    other.release()
    assert not file.exists()
    nobody = stale(pid=99999999999999999999, process=None)
    for damaged in ("", "{", "[1]", '{"pid": "x", "host": 3}', nobody):
        file.write_text(damaged)
        other.acquire()
        other.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_zombie_process_is_taken_over(tmp_path):
    """A killed process whose parent has not waited for it: a zombie has a pid, but writes no more."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lib.session.lock import SessionLock\n"
        "SessionLock(Path(sys.argv[1])).acquire()\nprint('taken', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"taken\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} on this host"):
        SessionLock(tmp_path).acquire()
    os.kill(process.pid, signal.SIGKILL)
    wait_until_dead = time.monotonic() + 10
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < wait_until_dead
    SessionLock(tmp_path).acquire()
    process.wait()
    process.stdout.close()


def test_a_process_suspended_while_it_acquires_the_lock_blocks_nobody(tmp_path, monkeypatch):
    """It holds the kernel's lock of session.lock and has written nothing yet."""
    code = "import fcntl, sys\nfile = open(sys.argv[1], 'a+b')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint(1)\ninput()\n"
    lock = tmp_path / "session.lock"
    process = start(lock, program=("-uc", code), fresh=True, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "1\n"
    monkeypatch.setattr("lib.session.lock.PATIENCE", 0.2)
    with pytest.raises(UserError, match="has been suspended; continue or stop that process"):
        SessionLock(tmp_path).acquire()
    monkeypatch.setattr("lib.session.lock.PATIENCE", 60)
    threading.Timer(0.2, process.communicate, ["\n"]).start()
    SessionLock(tmp_path).acquire()
    assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("pid", [0, -1, True, 1.5, None])
def test_a_lock_of_no_process_is_taken_over(tmp_path, pid):
    (tmp_path / "session.lock").write_text(stale(pid=pid))
    SessionLock(tmp_path).acquire()
    assert json.loads((tmp_path / "session.lock").read_text())["pid"] == os.getpid()


def test_exactly_one_of_many_processes_takes_a_stale_lock(tmp_path):
    """Real processes, released together."""
    (tmp_path / "session.lock").write_text(stale(process="gone"))
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lib.errors import UserError\n"
        "from lib.session.lock import SessionLock\nlock = SessionLock(Path(sys.argv[1]))\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n    lock.acquire()\n    print('mine')\nexcept UserError:\n    print('theirs')\n"
        "sys.stdout.flush()\nsys.stdin.read()\n"
    )
    begin = str(time.time() + 2)
    running = [start(tmp_path, begin, program=("-c", code), stdin=subprocess.PIPE) for _ in range(8)]
    said = [process.stdout.readline().strip() for process in running]
    for process in running:
        process.communicate()
    assert sorted(said) == ["mine"] + ["theirs"] * 7


def test_links_in_a_session_are_not_followed(whole, tmp_path, capsys):
    """A foreign session whose log.txt is a link to a file of the user."""
    session, ours = tmp_path / "plain", tmp_path / "ours"
    shutil.copytree(whole("plain"), session)
    ours.write_text("precious")
    (session / "log.txt").unlink()
    (session / "log.txt").symlink_to(ours)
    assert main(["--resume", str(session), "--max-round", "3"]) == 2
    assert "is a link; a run writes into its own folder alone" in error_line(capsys.readouterr().err)
    assert ours.read_text() == "precious"


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/0000-00000.ckpt"])
def test_a_link_to_another_session_is_not_followed(whole, tmp_path, capsys, place):
    theirs = shutil.copytree(whole("plain"), tmp_path / "theirs")
    session = shutil.copytree(whole("plain"), tmp_path / "s")
    shutil.rmtree(session / "checkpoint")
    (session / place).parent.mkdir(exist_ok=True)
    (session / place).symlink_to(theirs / place)
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    assert main(["--resume", str(session), "--max-round", "3"]) == 2
    assert "is a link; a run writes into its own folder alone" in error_line(capsys.readouterr().err)
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before


def test_pipes_and_folders_in_a_session_do_not_block(whole, tmp_path, capsys):
    session = shutil.copytree(whole("plain"), tmp_path / "s")
    newest = sorted(checkpoints(session))[-1]
    (session / "metrics.jsonl").unlink()
    os.mkfifo(session / "metrics.jsonl")
    assert main(["--resume", str(session), "--max-round", "3"]) == 2
    assert "metrics.jsonl is not a regular file; remove it" in error_line(capsys.readouterr().err)
    (session / "metrics.jsonl").unlink()
    (session / "metrics.jsonl").mkdir()
    assert main(["--resume", str(session), "--max-round", "3"]) == 2
    assert "metrics.jsonl is a folder where a file belongs; move it away" in error_line(capsys.readouterr().err)
    (session / "checkpoint" / newest).unlink()
    os.mkfifo(session / "checkpoint" / newest)
    assert main(["--resume", str(session / "checkpoint" / newest), "--print-args"]) == 2
    capsys.readouterr()
    assert main(["--resume", str(session), "--print-args"]) == 0
    assert f"{newest} cannot be read (it is not a regular file)" in capsys.readouterr().err


def test_a_session_of_dead_links_does_not_hide_other_sessions(whole, tmp_path, capsys):
    shutil.copytree(whole("plain"), tmp_path / "good")
    (tmp_path / "bad" / "checkpoint").mkdir(parents=True)
    (tmp_path / "bad" / "checkpoint" / "0000-00000.ckpt").symlink_to("nowhere")
    (tmp_path / "bad" / "checkpoint" / "0001-00000.ckpt").symlink_to("0001-00000.ckpt")
    assert main(["--resume", "last", "--sess-dir", str(tmp_path), "--print-args"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_whose_terminal_closes_saves_and_stops(tmp_path, number):
    """The reader of its output ends first, as `tee` does after Ctrl-C."""
    process = start(*TINY, "--no-brief", "--max-epoch", "500", "--sess-dir", tmp_path, "--session", "s")
    session = tmp_path / "s"
    wait_for(lambda: checkpoints(session), process)
    process.stdout.close()
    process.stderr.close()
    time.sleep(1)  # some words that nobody hears
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert not (session / "session.lock").exists()
    assert checkpoint.load(session / "checkpoint" / "0000-00000.ckpt")["session"] == "s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_final_evaluation(tmp_path, number):
    protocols = ["--protocol", "linear", "--max-round", "1", "--max-epoch", "1"]
    process = start(*TINY, *protocols, "--no-brief", "--sess-dir", tmp_path, "--session", "s")
    log = tmp_path / "s" / "log.txt"
    wait_for(lambda: log.exists() and "linear, stem" in log.read_text(), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    said = f"{number.name}: stopped while the finished network was evaluated; it is saved as "
    assert error_line(err).startswith(said)
    assert "evaluate it with: python3 main.py --resume " in err
    resume(tmp_path / "s")
    assert "linear_fc_top1" in (tmp_path / "s" / "metrics.jsonl").read_text()


def test_resuming_with_other_options_always_leaves_a_config(tmp_path):
    """config.yaml is replaced atomically, and its earlier content is kept."""
    session = SessionFolder.create(str(tmp_path), "s")
    session.write_config("seed: 1\n")
    session.write_config("seed: 1\n")
    assert sorted(path.name for path in session.path.iterdir()) == ["checkpoint", "config.yaml"]
    with small_disk(tmp_path / "disk", 8192) as disk:
        full = SessionFolder.create(str(disk), "s")
        full.write_config("seed: 1\n")
        (disk / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(RunError, match="could not be written: No space left on device"):
            full.write_config("seed: 2\n" * 1000)
        assert full.config.read_text() == "seed: 1\n"
    session.write_config("seed: 2\n")
    assert session.config.read_text() == "seed: 2\n"
    assert (session.path / "config.before.yaml").read_text() == "seed: 1\n"


@pytest.mark.parametrize("way", ["--test-only", "--report-only", "--embed"])
def test_nothing_is_written_through_a_link_in_a_session(whole, tmp_path, capsys, way):
    session = shutil.copytree(whole("plain"), tmp_path / "s")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table").write_text("dear")
    os.symlink(tmp_path / "mine" / "table", session / "cluster-table.csv")
    os.symlink(tmp_path / "mine", session / "embedded")
    more = {"--test-only": ["--protocol", "cluster"], "--embed": [str(tmp_path / "pictures")]}.get(way, [])
    assert main(["--resume", str(session), way, *more]) == 2
    assert "is a link" in error_line(capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["table"]
    assert (tmp_path / "mine" / "table").read_text() == "dear"
